"""Top-k and top-p without sorting, by a threshold that is found bit by bit.

Sorting Gemma's 262,144 tokens takes longer on a CPU than a small target's whole forward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


# Jitted for callers outside a jitted round, where the loop would be compiled at every call.
@jax.jit
def top_k_mask(logits: Float[Array, "*batch v"], top_k: int | Int[Array, ""]) -> Bool[Array, "*batch v"]:
    """As `sampling.top_k_mask`."""
    keys = _ordered(logits)
    return keys >= _threshold(keys, lambda kept: kept.sum(axis=-1, keepdims=True) >= top_k)


@jax.jit
def top_p_mask(probs: Float[Array, "*batch v"], top_p: float | Float[Array, ""]) -> Bool[Array, "*batch v"]:
    """As `sampling.top_p_mask`, except that sums are rounded otherwise."""
    keys = _ordered(probs)

    def mass(kept: Bool[Array, "*batch v"]) -> Float[Array, "*batch 1"]:
        return jnp.where(kept, probs, 0).sum(axis=-1, keepdims=True)

    edge = _threshold(keys, lambda kept: mass(kept) >= top_p)
    at_edge = keys == edge
    mass_before = mass(keys > edge) + probs * (jnp.cumsum(at_edge, axis=-1) - 1)
    return (keys > edge) | (at_edge & (mass_before < top_p))


def _ordered(x: Float[Array, "*batch v"]) -> UInt32[Array, "*batch v"]:
    """Whole numbers in the same order as the float32 values: the bits of negatives count downwards."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)  # -0 equals 0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(
    keys: UInt32[Array, "*batch v"], reaches: Callable[[Bool[Array, "*batch v"]], Bool[Array, "*batch 1"]]
) -> UInt32[Array, "*batch 1"]:
    """The highest number for which `keys >= number` still reaches enough; 0 if nothing does."""

    def with_bit(i: Array, found: Array) -> Array:
        higher = found | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(reaches(keys >= higher), higher, found)

    return jax.lax.fori_loop(0, 32, with_bit, jnp.zeros((*keys.shape[:-1], 1), jnp.uint32))
