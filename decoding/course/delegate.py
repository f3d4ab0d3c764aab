"""In a student's copy of the packages, what a hole calls: the function in solutions/.

Code in jax.numpy is traced like the rest.  Other code (NumPy, loops over values) is called back from the compiled program with
arrays.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

SOLUTIONS = Path(__file__).parents[2] / "solutions"


class NotWritten(NotImplementedError):
    """A student's function is still to be written.  The command shows it as one line."""

    is_mistake = True


class NeedsTracing(NotImplementedError):
    """A student's function that only works with values.  The command shows it as one line; grading takes it."""

    is_mistake = True


def solve(function: str, *arguments: Any, like: Any) -> Any:
    """The result of "09 decide" on these arguments, as JAX arrays.

    like: an array, or a tuple of arrays, of the results' shapes and dtypes.
    Errors: NotWritten; ValueError if a result has another shape.
    """
    number, name = function.split()
    file, given = _file(number), _function(number, name)
    try:
        return _as_results(given(*arguments), like, name)
    except NotImplementedError:
        raise NotWritten(f"assignment {number} ({file.parent.name}/{file.name}, {name}) is not written yet") from None
    except Exception as error:
        leaves = jax.tree.leaves(arguments)
        if not any(isinstance(leaf, Tracer) or callable(leaf) for leaf in leaves):
            raise
        if any(callable(leaf) for leaf in leaves):  # functions cannot be called back with values
            raise NeedsTracing(
                f"assignment {number}: inside the program `{name}` must be written with jax.numpy, for it gets functions; "
                f"as it is it fails with {type(error).__name__}: {error!s:.200}"
            ) from error
    # It does not trace: call it with values when the program runs.  Numbers and None are known now.
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), like)
    is_array = [isinstance(argument, (jax.Array, np.ndarray)) for argument in arguments]

    def call(*values: Any) -> Any:
        rest = iter(values)
        every = (np.asarray(next(rest)) if array else old for array, old in zip(is_array, arguments, strict=True))
        return jax.tree.map(np.asarray, _as_results(given(*every), like, name))

    arrays = [argument for array, argument in zip(is_array, arguments, strict=True) if array]
    return jax.pure_callback(call, shapes, *arrays)


def left_out(what: str) -> NoReturn:
    """For a function that would tell the answer of an assignment.  Errors: NotWritten."""
    raise NotWritten(f"{what} is left out of this copy, because it would tell an answer")


def _as_results(results: Any, like: Any, name: str) -> Any:
    def one(result: Any, wanted: Any) -> jax.Array:
        array = jnp.asarray(result).astype(wanted.dtype)
        if array.shape != wanted.shape:
            raise ValueError(f"{name}: expected a result of shape {wanted.shape}, got {array.shape}")
        return array

    if isinstance(like, tuple):
        if not isinstance(results, Sequence) or len(results) != len(like):
            raise ValueError(f"{name}: expected {len(like)} results")
        return tuple(map(one, results, like))
    return one(results, like)


def _file(number: str) -> Path:
    files = sorted(SOLUTIONS.glob(f"a{number}_*.py"))
    if not files:
        raise NotWritten(f"assignment {number}: expected its file in {SOLUTIONS}")
    return files[0]


def _function(number: str, name: str) -> Any:
    file = _file(number)
    function = getattr(_module(file, file.stat().st_mtime_ns), name, None)
    if not callable(function):
        raise NotWritten(f"assignment {number} ({file.parent.name}/{file.name}): expected a function `{name}`")
    return function


@functools.lru_cache(maxsize=32)
def _module(file: Path, changed: int) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"solutions_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
