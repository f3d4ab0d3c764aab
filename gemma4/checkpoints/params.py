"""The parameters of a module by name, for any module.

A parameter is called by its path in the module, `layers.3.self_attn.q_proj.weight`.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from gemma4.checkpoints.directories import CheckpointError
from gemma4.layers import Linear
from gemma4.memory import check_memory
from gemma4.sharding import shardings

Module = TypeVar("Module", bound=nnx.Module)
Leaf = jax.Array | jax.ShapeDtypeStruct  # the latter in a module of `shape_only`


def named_params(module: nnx.Module) -> dict[str, Any]:
    """The parameters of a module by path; each is a `Leaf`."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}


def with_params(module: Module, params: Mapping[str, Any]) -> Module:
    """A copy of the module with the parameters that `params` names replaced."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: params.get(_name(path), leaf), module)


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def linear_weights(module: nnx.Module) -> set[str]:
    """Names of the weights that files hold transposed."""
    parts = nnx.iter_modules(module)
    return {".".join(map(str, (*path, "weight"))) for path, part in parts if isinstance(part, Linear)}


def shape_only(build: Callable[..., Module], config: Any, dtype: Any) -> Module:
    """The module with shapes and dtypes in place of parameters: costs no memory at any size."""
    return jax.tree.map(
        lambda leaf: leaf, _abstract(build, config, float_dtype(dtype))
    )  # a copy, for callers to change


@functools.lru_cache(maxsize=16)
def _abstract(build: Callable[..., Module], config: Any, dtype: np.dtype) -> Module:
    return jax.eval_shape(lambda: build(config, rngs=_OneKey(), dtype=dtype))


class LoadReport(NamedTuple):
    """What became of the tensors in a checkpoint, by their names in the file."""

    loaded: tuple[str, ...]
    unused_kv: tuple[str, ...] = ()  # K/V weights of layers that read another layer's K/V: released files have them
    other: tuple[str, ...] = ()  # vision, audio, and the LM head, which is the embedding table again


class _OneKey(nnx.Rngs):
    """The same key for every weight, because only shapes count.  Flax's own key streams take most of the time otherwise."""

    def __init__(self):
        pass

    def params(self) -> jax.Array:
        return jax.random.key(0)


def float_dtype(dtype: Any) -> np.dtype:
    """Errors: CheckpointError unless float32, bfloat16 or float16."""
    with contextlib.suppress(TypeError):
        if jnp.dtype(dtype).name in ("float32", "bfloat16", "float16"):
            return jnp.dtype(dtype)
    raise CheckpointError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")


def check_fits(blank: nnx.Module, source: Path, mesh: Mesh | None) -> None:
    """Errors: NotEnoughMemory if the parameters that `blank` (see `shape_only`) describes cannot fit; not over a mesh."""
    if mesh is None:
        check_memory(
            str(source), named_params(blank).values(), "load it as bfloat16, or over several devices, or free some"
        )


def check_model(model: object, kind: type[nnx.Module], writer: str) -> None:
    """Errors: CheckpointError unless the model is of the kind that `writer` writes."""
    if type(model) is not kind:  # not even a twin of gemma4.fast, which holds more arrays than a checkpoint
        raise CheckpointError(
            f"{writer}: expected a {kind.__name__}, got a {type(model).__name__}; `gemma4` writes targets, `drafter` drafters, "
            "each as it was loaded or built"
        )


def shardings_on(
    params: Mapping[str, Leaf], mesh: Mesh | None, otherwise: Sharding | None = None
) -> dict[str, Sharding | None]:
    """The sharding of each parameter; without a mesh it is `otherwise`, where None leaves the choice to JAX."""
    return dict.fromkeys(params, otherwise) if mesh is None else dict(shardings(params, mesh))


def shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}


def check_tensors(
    expected: Mapping[str, tuple],
    found: Mapping[str, tuple],
    source: Path,
    asked_by: str = "config.json; are both files of the same model?",
) -> None:
    """Compare names and shapes.

    asked_by: what `expected` comes from, and what to do about a difference.
    Errors:   one CheckpointError with every kind of difference, its count and the first few.
    """
    problems = {
        "missing": [f"{name} {list(expected[name])}" for name in expected if name not in found],
        "unexpected": [f"{name} {list(found[name])}" for name in found if name not in expected],
        "of another shape": [
            f"{name} is {list(found[name])}, expected {list(expected[name])}"
            for name in expected
            if name in found and tuple(found[name]) != tuple(expected[name])
        ],
    }
    if any(problems.values()):
        kinds = [f"{len(names)} {kind}: {_first_few(names)}" for kind, names in problems.items() if names]
        raise CheckpointError(f"{source}: the tensors do not fit {asked_by}  " + ".  ".join(kinds))


def _first_few(names: list[str], count: int = 3) -> str:
    return "; ".join(names[:count]) + ("; ..." if len(names) > count else "")


def to_floats(array: np.ndarray, dtype: np.dtype, source: str) -> np.ndarray:
    """The same numbers in another dtype, rounded.  Errors: CheckpointError for a finite one that is infinite there.

    Checked only for dtypes with a smaller exponent range: float16, and anything from float64.  (From float32 to bfloat16 the
    last 0.4 % of the range is lost, where no weight is; not checking keeps loading as bfloat16 quick.)
    """
    is_narrower = jnp.finfo(dtype).maxexp < jnp.finfo(array.dtype).maxexp
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if is_narrower and (lost := array[np.isinf(cast) & np.isfinite(array)]).size:
        raise CheckpointError(
            f"{source} holds {lost[0]}, past the range of {dtype}; try float32 or bfloat16, which reach 3.4e+38"
        )
    return cast
