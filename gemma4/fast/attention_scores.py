"""The product of queries and keys, in the form that suits their number and the machine."""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from gemma4.functional import attention_scores

MAX_QUERIES_ONE_BY_ONE, MAX_QUERIES_KEYS_FIRST = 8, 64  # queries that share a KV head


def scores(query: Float[Array, "b k g t h"], key: Float[Array, "b k s h"], backend: str) -> Float[Array, "b k g t s"]:
    """`functional.attention_scores`, in one of three forms.

    At most 8 queries on a CPU, as at a step: one matrix-vector product for each, because XLA copies K for a batched product.
    Fewer than 64, as at verify: K·Qᵀ, and transpose the small result; otherwise XLA transposes the whole cache on a GPU.
    More, as at prefill: Q·Kᵀ.
    """
    _, _, groups, time, _ = query.shape
    if backend == "cpu" and groups * time <= MAX_QUERIES_ONE_BY_ONE:
        each = rearrange(query, "b k g t h -> (g t) b k h")
        products = jnp.stack([jnp.einsum("bksh,bkh->bks", key, one) for one in each], axis=2)
        return rearrange(products, "b k (g t) s -> b k g t s", g=groups)
    if groups * time < MAX_QUERIES_KEYS_FIRST:
        return jnp.moveaxis(jnp.einsum("bksh,bkgth->bksgt", key, query), 2, -1)
    return attention_scores(query, key)
