"""The product of queries and keys for few queries, as at a step or at verify."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4.functional import attention_scores

# Queries that share a KV head.  On a GPU a verify of 12B has 16 times its tokens.
MAX_QUERIES_KEYS_FIRST = {"cpu": 64, "tpu": 64, "gpu": 256}


def scores(
    query: Float[Array, "b k g t h"], key: Float[Array, "b k s h"], backend: str = "cpu"
) -> Float[Array, "b k g t s"]:
    """`functional.attention_scores`; for few queries K·Qᵀ, with the small result transposed.

    For Q·Kᵀ, XLA transposes the whole cache on a GPU and copies it on a CPU.
    """
    _, _, groups, time, _ = query.shape
    if groups * time < MAX_QUERIES_KEYS_FIRST[backend]:
        return jnp.moveaxis(jnp.einsum("bksh,bkgth->bksgt", key, query), 2, -1)
    return attention_scores(query, key)
