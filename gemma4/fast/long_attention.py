"""Attention over a long cache: `functional.attention`, one block of keys at a time, with an online softmax.

`attention` writes down the score of every query with every key, and a copy of all values.  Beyond the processor's cache each
of these passes waits for memory, and the scores of a chunk of a long prompt take gigabytes.  Here both are of one block, and
blocks that no query sees are not read, so that time grows with the text and not with the capacity of the cache.

Source: online softmax, Milakov & Gimelshein 2018 (arXiv 1805.02867), algorithm 3; in blocks as Rabe & Staats 2021
(arXiv 2112.05682) and FlashAttention (Dao et al. 2022, arXiv 2205.14135).
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from gemma4.fast.attention_scores import scores

MIN_SLOTS = 8192  # up to here `attention` is as fast
BLOCK = {"cpu": 1024}  # keys
LARGE_BLOCK = 8192  # elsewhere: a GPU waits for the host at each iteration of the loop


def is_long(queries: int, slots: int) -> bool:
    """Whether blocks pay.  A text without a cache, as in training, needs a gradient, which they do not have."""
    return slots > MIN_SLOTS and queries < slots


def attention_in_blocks(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    mask: Bool[Array, "b t s"],
    backend: str = "cpu",
    block: int | None = None,
) -> Float[Array, "b t n h"]:
    """As `functional.attention`, but sums run in another order, and probabilities are rounded before they are normalised.

    block: keys at a time; what suits `backend` unless given.
    Has no gradient: the number of blocks is known only when it runs.
    """
    slots, lowest = key.shape[2], jnp.finfo(jnp.float32).min
    block = min(block or BLOCK.get(backend, LARGE_BLOCK), slots)
    queries = rearrange(query, "b t (k g) h -> b k (t g) h", k=key.shape[1])
    group = query.shape[2] // key.shape[1]
    last_seen = jnp.where(mask.any(axis=(0, 1)), jnp.arange(slots), 0).max()

    def one_block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        running_max, total, out = carry  # of each query: highest score so far; sum of exp(score - max); that of values
        start = jnp.minimum(i * block, slots - block)  # the last block may begin within the one before it
        keys, values, visible = (jax.lax.dynamic_slice_in_dim(x, start, block, axis=2) for x in (key, value, mask))
        visible &= start + jnp.arange(block) >= i * block
        values = jnp.where(visible.any(axis=1)[:, None, :, None], values, 0)

        products = scores(queries[:, :, None], keys, backend)[:, :, 0].astype(jnp.float32)
        products = jnp.where(repeat(visible, "b t s -> b 1 (t g) s", g=group), products, lowest)
        # The online softmax: what was summed so far is rescaled to the new maximum.
        new_max = jnp.maximum(running_max, products.max(axis=-1))
        weights, rescale = jnp.exp(products - new_max[..., None]), jnp.exp(running_max - new_max)
        update = jnp.einsum("bkrs,bksh->bkrh", weights.astype(value.dtype), values, preferred_element_type=jnp.float32)
        return new_max, total * rescale + weights.sum(axis=-1), out * rescale[..., None] + update

    nothing = jnp.full(queries.shape[:3], lowest), jnp.zeros(queries.shape[:3]), jnp.zeros(queries.shape)
    _, total, out = jax.lax.fori_loop(0, last_seen // block + 1, one_block, nothing)
    return rearrange((out / total[..., None]).astype(value.dtype), "b k (t g) h -> b t (k g) h", g=group)
