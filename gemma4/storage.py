"""Tensors on disk: safetensors and Orbax in and out, for any module.  Both packages' `checkpoint.py` build on it.

A parameter is called by its path in the module, `layers.3.self_attn.q_proj.weight`.  Linear weights are [out, in] in
safetensors files and [in, out] here; all else is stored alike.  Orbax keeps everything as it is here.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemma4.layers import Linear
from gemma4.sharding import shardings

WEIGHTS, INDEX, ORBAX = "model.safetensors", "model.safetensors.index.json", "params"
CPU_COPIES = ("cpu_head", "cpu_blocks")  # what `for_cpu` lays beside the weights
FLOATS, INTEGERS = ("F64", "F32", "BF16", "F16"), ("I64", "I32")  # dtypes by their safetensors names
Module = TypeVar("Module", bound=nnx.Module)
Leaf = jax.Array | jax.ShapeDtypeStruct


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file or tensor and what to do."""


def named_params(module: nnx.Module) -> dict[str, Leaf]:
    """The parameters of a module by path; the copies that `for_cpu` makes are none."""
    named = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}
    return {name: leaf for name, leaf in named.items() if name.split(".")[-1] not in CPU_COPIES}


def with_params(module: Module, params: Mapping[str, Any]) -> Module:
    """A copy of the module with the parameters that `params` names replaced."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: params.get(_name(path), leaf), module)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def linear_weights(module: nnx.Module) -> set[str]:
    """Names of the weights that files hold transposed."""
    parts = nnx.iter_modules(module)
    return {".".join(map(str, (*path, "weight"))) for path, part in parts if isinstance(part, Linear)}


def abstract(build: Callable[..., Module], config: Any, dtype: Any) -> Module:
    """The module with shapes and dtypes in place of parameters: costs no memory at any size."""
    dtype = float_dtype(dtype)
    return jax.eval_shape(lambda: build(config, rngs=_OneKey(), dtype=dtype))


class _OneKey(nnx.Rngs):
    """The same key for every weight, where only shapes count.  Flax's own counters take five times as long as all the rest."""

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


def check_model(model: object, kind: type[nnx.Module], writer: str) -> None:
    """Before anything of it is written.  Errors: CheckpointError unless the model is of the kind that `writer` writes."""
    if not isinstance(model, kind):
        raise CheckpointError(
            f"{writer}: expected a {kind.__name__}, got a {type(model).__name__}; `gemma4` writes targets, `drafter` drafters"
        )


def read_config(directory: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """config.json through `parse`.  Errors: CheckpointError if absent, not JSON, or refused by `parse` (ValueError)."""
    file = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a local one with config.json and weights")
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; a checkpoint directory has config.json beside its weights")
    return parsed(file, parse)


def parsed(file: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """A JSON object through `parse`.  Errors: CheckpointError if the file is not JSON, or refused by `parse` (ValueError)."""
    try:
        return parse(_read_json(file))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # the latter for a hundred thousand brackets
        raise CheckpointError(f"{file}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


class Stored(NamedTuple):
    """One tensor in a safetensors file, not yet read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # by its safetensors name
    handle: Any

    def read(self) -> np.ndarray:
        return self.handle.get_tensor(self.key)


def read_tensors(directory: Path) -> dict[str, Stored]:
    """What the safetensors file of a directory, or the shards that its index names, hold.  Reads headers only.

    Errors: CheckpointError that names the file which is missing or damaged, or the tensor that a shard lacks.
    """
    if (directory / WEIGHTS).is_file():
        return _open(directory / WEIGHTS)
    if not (directory / INDEX).is_file():
        found = ", ".join(sorted(path.name for path in directory.iterdir())) or "nothing"
        raise CheckpointError(
            f"{directory}: no weights; expected {WEIGHTS}, {INDEX} with shards, or {ORBAX}/ (Orbax), found {found}"
        )
    placed = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise CheckpointError(f"{directory / INDEX}: weight_map must map tensors to shards; fetch the file again")
    shards = {shard: _open(directory / shard) for shard in sorted(set(placed.values()))}
    for key, shard in placed.items():
        if key not in shards[shard]:
            raise CheckpointError(f"{directory / shard}: lacks {key}, which {INDEX} places there; fetch both again")
    return {key: shards[shard][key] for key, shard in placed.items()}


def _open(file: Path) -> dict[str, Stored]:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing, but {INDEX} names it; fetch this shard")
    try:
        handle = safe_open(file, "numpy")
        slices = {key: handle.get_slice(key) for key in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); fetch it again (a few bytes only: a Git LFS pointer)"
        ) from error
    return {key: Stored(file, key, tuple(s.get_shape()), s.get_dtype(), handle) for key, s in slices.items()}


def fill(
    blank: Module,
    tensors: Mapping[str, Stored],
    source: Path,
    mesh: Mesh | None = None,
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> Module:
    """The module that `blank` (see `abstract`) describes, read from `tensors` one at a time.

    mesh:   put each tensor onto its devices as it is read, split as `sharding.py` says; None puts all onto one.
    rename: from a parameter's name to its name in `tensors`.  Floats are converted to the dtype of `blank`.
    Errors: CheckpointError that lists every tensor missing, unexpected, misshapen, or of a kind that it cannot convert; one
            for a number that the dtype does not reach; ValueError for a mesh of other axes.
    """
    params, transposed = named_params(blank), linear_weights(blank)
    places = placed_on(params, mesh)
    expected = {rename(name): leaf.shape[::-1] if name in transposed else leaf.shape for name, leaf in params.items()}
    check_tensors(expected, shapes(tensors), source)
    for name, leaf in params.items():
        tensor = tensors[rename(name)]
        kinds = FLOATS if jnp.issubdtype(leaf.dtype, jnp.floating) else INTEGERS
        if tensor.dtype not in kinds:
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} is stored as {tensor.dtype}, expected one of {', '.join(kinds)}; "
                "quantised checkpoints are not supported"
            )

    def read(name: str, leaf: Leaf) -> jax.Array:
        tensor = tensors[rename(name)]
        array = tensor.read().T if name in transposed else tensor.read()
        convert = _as_floats if jnp.issubdtype(leaf.dtype, jnp.floating) else _as_integers
        array = convert(array, leaf.dtype, f"{tensor.file}: {tensor.key}")
        return jax.device_put(array, places[name])  # from the host, each device gets its own part and no other

    return with_params(blank, {name: read(name, leaf) for name, leaf in params.items()})


def _as_floats(array: np.ndarray, dtype: np.dtype, source: str) -> np.ndarray:
    """The same numbers in another dtype, rounded.  Errors: CheckpointError for a finite one that is infinite there.

    Looked for only where exponents are fewer: in float16, and of float64 in all.  (From float32 to bfloat16 the last 0.4 % of
    the range is lost: no weight lies there, and loading as bfloat16 stays as quick as it was.)
    """
    is_narrower = jnp.finfo(dtype).maxexp < jnp.finfo(array.dtype).maxexp
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if is_narrower and (lost := array[np.isinf(cast) & np.isfinite(array)]).size:
        raise CheckpointError(
            f"{source} holds {lost[0]}, past the range of {dtype}; try float32 or bfloat16, which reach 3.4e+38"
        )
    return cast


def _as_integers(array: np.ndarray, dtype: np.dtype, source: str) -> np.ndarray:
    """The same numbers in another dtype.  Errors: CheckpointError for one that would wrap."""
    cast = array.astype(dtype, copy=False)
    if (wrong := array[array != cast]).size:
        raise CheckpointError(f"{source} holds {wrong[0]}, expected numbers that fit {dtype}; fetch the file again")
    return cast


def placed_on(
    params: Mapping[str, Leaf], mesh: Mesh | None, otherwise: Sharding | None = None
) -> dict[str, Sharding | None]:
    """Where each parameter belongs; without a mesh `otherwise`, of which None stands for JAX's own choice."""
    return dict.fromkeys(params, otherwise) if mesh is None else shardings(params, mesh)


def check_tensors(
    expected: Mapping[str, tuple],
    found: Mapping[str, tuple],
    source: Path,
    asked_by: str = "config.json; are both files of the same model?",
) -> None:
    """Compare names and shapes.

    asked_by: what `expected` comes from, and what to do about it.
    Errors:   one CheckpointError with every kind of difference, its count and first few.
    """
    shape = lambda name: list(expected[name])
    problems = {
        "missing": [f"{name} {shape(name)}" for name in expected if name not in found],
        "unexpected": [f"{name} {list(found[name])}" for name in found if name not in expected],
        "of another shape": [
            f"{name} is {list(found[name])}, expected {shape(name)}"
            for name in expected
            if name in found and tuple(found[name]) != tuple(expected[name])
        ],
    }
    if any(problems.values()):
        lines = [f"{len(names)} {kind}: {_first_few(names)}" for kind, names in problems.items() if names]
        raise CheckpointError(f"{source}: the tensors do not fit {asked_by}\n  " + "\n  ".join(lines))


def _first_few(names: list[str], count: int = 5) -> str:
    return "; ".join(names[:count]) + ("; ..." if len(names) > count else "")


def write_safetensors(
    module: nnx.Module, file: Path, dtype: np.dtype | None = None, *, rename: Callable[[str], str] = lambda name: name
) -> None:
    """All parameters of a module in one safetensors file, linear weights [out, in]; floats as `dtype` if given.

    Errors: CheckpointError for a number that the dtype does not reach.
    """
    transposed = linear_weights(module)

    def stored(name: str, leaf: jax.Array) -> np.ndarray:
        array = np.asarray(leaf).T if name in transposed else np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.int64)  # as torch has them
        elif dtype is not None:
            array = _as_floats(array, dtype, name)
        return np.ascontiguousarray(array)  # for save_file writes the buffer with no eye to its strides

    arrays = {rename(name): stored(name, leaf) for name, leaf in named_params(module).items()}
    save_file(arrays, file, metadata={"format": "pt"})  # transformers wants the format named


def save_orbax(module: nnx.Module, path: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), named_params(module))


def load_orbax(blank: Module, path: Path, mesh: Mesh | None = None) -> Module:
    """The module that `blank` describes, from what `save_orbax` wrote, in the dtypes of `blank`.  Mesh, errors: as `fill`."""
    expected = named_params(blank)
    places = placed_on(expected, mesh, SingleDeviceSharding(jax.devices()[0]))
    check_tensors(shapes(expected), shapes(orbax_tensors(path)), path)
    return with_params(blank, read_orbax(path, expected, places))


def is_orbax(directory: Path) -> bool:
    """Whether this is itself the folder that Orbax wrote."""
    return (directory / "_METADATA").is_file()


def orbax_tensors(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """What Orbax wrote there, by path in the tree, joined by slashes.  Reads no tensors.

    Errors: CheckpointError if the folder is damaged.
    """
    with _readable(path), ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(path.absolute()).item_metadata
        if found is None:
            raise ValueError("nothing tells which tensors it holds")
        leaves = jax.tree_util.tree_leaves_with_path(found.tree)
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
        return {name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}


def read_orbax(
    path: Path, wanted: Mapping[str, Leaf], places: Mapping[str, Sharding] | None = None
) -> dict[str, jax.Array | np.ndarray]:
    """The tensors that `wanted` names as `orbax_tensors` does, in its dtypes; no others are read.

    places: where each is put; None leaves all on the host, as NumPy arrays.
    Errors: CheckpointError if the folder is damaged, and for a number that the wanted dtype does not reach.
    """
    tensors = _restored(path, wanted, places)
    narrow = [name for name, leaf in wanted.items() if leaf.dtype == jnp.float16]
    if infinite := [name for name in narrow if np.isinf(np.asarray(tensors[name])).any()]:
        # Orbax casts by itself.  Only what is infinite now is read as it is stored, to see whether it was so there.
        stored = _restored(path, {name: leaf for name, leaf in orbax_tensors(path).items() if name in infinite})
        for name, array in stored.items():
            _as_floats(array, wanted[name].dtype, f"{path}: {name}")
    return tensors


def _restored(
    path: Path, wanted: Mapping[str, Leaf], places: Mapping[str, Sharding] | None = None
) -> dict[str, jax.Array | np.ndarray]:
    on_host = lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    placed = lambda name, leaf: ocp.ArrayRestoreArgs(dtype=leaf.dtype, sharding=places[name])
    how = {name: on_host(leaf) if places is None else placed(name, leaf) for name, leaf in wanted.items()}
    wanted, how = (unflatten_dict(tree, sep="/") for tree in (wanted, how))
    arguments = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
    with _readable(path), ocp.PyTreeCheckpointer() as checkpointer:
        return flatten_dict(checkpointer.restore(path.absolute(), args=arguments), sep="/")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise CheckpointError(f"{path}: Orbax cannot read it, damaged or not written whole ({error})") from error


def shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling that takes the name `directory` when the block ends well, and is removed when it does not.

    Parents that were missing are made, and removed with it.  A signal that ends the process without an exception (SIGTERM, as
    Python leaves it) leaves the sibling, `.NAME.` and 32 digits: what signals do is the program's to say, not a library's.

    Errors: CheckpointError if `directory` exists and is not an empty directory: nothing is ever overwritten.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; give a new directory, or remove this one first")
    scratch = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    new_parents = [parent for parent in scratch.parents if not parent.exists()]  # the deepest first
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if directory.exists():
            directory.rmdir()  # empty, as checked above
        scratch.rename(directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):  # never made, or somebody has put something there since
                parent.rmdir()
        raise
