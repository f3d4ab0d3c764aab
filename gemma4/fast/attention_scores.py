"""The product of queries and keys for few queries, as at a step or at verify."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4.functional import attention_scores

MAX_QUERIES_KEYS_FIRST = 64  # queries that share a KV head


def scores(query: Float[Array, "b k g t h"], key: Float[Array, "b k s h"]) -> Float[Array, "b k g t s"]:
    """`functional.attention_scores`; for fewer than 64 queries K·Qᵀ, with the small result transposed.

    For Q·Kᵀ, XLA transposes the whole cache on a GPU and copies it on a CPU.
    """
    _, _, groups, time, _ = query.shape
    if groups * time < MAX_QUERIES_KEYS_FIRST:
        return jnp.moveaxis(jnp.einsum("bksh,bkgth->bksgt", key, query), 2, -1)
    return attention_scores(query, key)
