"""Memoize functions of weight arrays, such as a table in another order."""

import weakref
from collections.abc import Callable

import jax


def memoize_by_array(compute: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`functools.cache` for functions of arrays, which neither goes stale nor keeps its arguments alive.

    Arguments are arrays, and plain numbers beside them.  A jax.Array never changes, so a new weight is a new array and
    `compute` runs again.  When one of the arrays is freed, the memo of the result goes with it.  Call it outside jit.
    """
    results: dict[tuple[int, ...], jax.Array] = {}

    def memoized(*args: jax.Array | int) -> jax.Array:
        arrays = [arg for arg in args if isinstance(arg, jax.Array)]
        key = tuple(id(arg) if isinstance(arg, jax.Array) else arg for arg in args)
        if key not in results:
            results[key] = compute(*args)
            for array in arrays:
                weakref.finalize(array, results.pop, key, None).atexit = False
        return results[key]

    return memoized
