"""The twin of `layers.Embedding`: one token's row of a table that is split over devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4.fast.twin import twin_of
from gemma4.layers import Embedding


class FastEmbedding(Embedding):
    """A twin of `layers.Embedding` for GPUs.

    XLA turns the lookup of a single row into a slice, and of a table that is split by rows it then sends the whole table to
    every device, at each step: 2.8 GB for 31B in bfloat16.  A lookup of two rows stays one, and devices add up rows alone.
    """

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        if tokens.size > 1:
            return super().__call__(tokens)
        one = tokens.reshape(1)
        twice = jax.lax.optimization_barrier(jnp.concatenate([one, one]))  # without it, XLA sees that they are the same
        return super().__call__(twice)[0].reshape(*tokens.shape, -1)


def embedding_twin(module: Embedding, backend: str) -> Embedding:
    return twin_of(module, FastEmbedding) if backend == "gpu" else module
