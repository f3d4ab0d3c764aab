"""What is computed from weights once and kept beside them: such as a table laid out for the CPU."""

import weakref
from collections.abc import Callable

import jax
from jaxtyping import Array, Float


def kept(compute: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`compute`, but once for the same arguments: `functools.cache` for arrays, that neither goes stale nor holds them.

    Arguments are arrays, and plain numbers beside them.  A jax.Array never changes, so a new weight is a new array, for which
    `compute` runs again.  As soon as one of the arrays is freed, so is what was computed from it (unless somebody else holds
    that).  To be called outside jit.
    """
    results: dict[tuple[int, ...], jax.Array] = {}

    def once(*args: jax.Array | int) -> jax.Array:
        arrays = [arg for arg in args if isinstance(arg, jax.Array)]
        key = tuple(id(arg) if isinstance(arg, jax.Array) else arg for arg in args)
        if key not in results:
            results[key] = compute(*args)
            for array in arrays:
                weakref.finalize(array, results.pop, key, None).atexit = False
        return results[key]

    return once


@kept
def transposed(table: Float[Array, "v d"]) -> Float[Array, "d v"]:
    return table.T
