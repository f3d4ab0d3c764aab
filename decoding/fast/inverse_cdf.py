"""A token from a distribution in two levels: first a block of tokens, then one of its tokens.

A running sum over all of Gemma's 262,144 tokens takes a CPU many times as long.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int


@jax.jit
def sample_from(probs: Float[Array, "*batch v"], uniforms: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    """As `sampling.sample_from`, except that running sums are rounded otherwise."""
    size = max(1, math.isqrt(probs.shape[-1]))
    padding = [(0, 0)] * (probs.ndim - 1) + [(0, -probs.shape[-1] % size)]
    blocks = rearrange(jnp.pad(probs, padding), "... (blocks tokens) -> ... blocks tokens", tokens=size)
    masses = blocks.sum(axis=-1)
    block, rest = invert_cdf(masses, uniforms * masses.sum(axis=-1))
    token, _ = invert_cdf(jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :], rest)
    return block * size + token


def invert_cdf(
    weights: Float[Array, "*batch n"], mark: Float[Array, "*batch"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The index at which the running sum of `weights` passes `mark`, and how much of that weight lies before the mark."""
    # A parallel cumsum rounds each sum in its own way, so at a weight of 0 it may still rise: hide those.
    running = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    mark = jnp.clip(mark, 0, jnp.nextafter(running.max(axis=-1), jnp.float32(0)))  # whatever rounding made of it
    index = jnp.argmax(running > mark[..., None], axis=-1).astype(jnp.int32)

    def at_index(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]

    return index, mark - (at_index(running) - at_index(weights))
