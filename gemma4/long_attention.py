"""Attention over a long cache: `functional.attend`, a block of keys at a time, by a softmax that is corrected as it goes.

`attend` writes down the score of every query with every key, and a copy of all values.  Beyond the processor's cache each of
these passes waits for memory, and the scores of a chunk of a long prompt take gigabytes.  Here both are a block's, and blocks
that no query sees are not read, so that time grows with the text and not with the room that was made for it.

Source: Milakov & Gimelshein 2018 (arXiv 1805.02867), algorithm 3; in blocks as Rabe & Staats 2021 (arXiv 2112.05682).
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from gemma4.functional import score

LONG = 8192  # slots; up to here `attend` is as fast (measured on CPU)
BLOCK, LARGE_BLOCK = 1024, 8192  # keys, on CPU and elsewhere: a GPU waits for the host at each turn of the loop


def is_long(queries: int, slots: int) -> bool:
    """Whether blocks pay.  A text without a cache, such as one trained on, needs a gradient."""
    return slots > LONG and queries < slots


def attend_in_blocks(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    seen: Bool[Array, "b t s"],
    block: int | None = None,
) -> Float[Array, "b t n h"]:
    """As `functional.attend`, but for the order of additions, and with probabilities rounded before they are normalised.

    Has no gradient: how many blocks are read is known only when it runs.
    """
    slots, low = key.shape[2], jnp.finfo(jnp.float32).min
    block = min(block or (BLOCK if jax.default_backend() == "cpu" else LARGE_BLOCK), slots)
    rows = rearrange(query, "b t (k g) h -> b k (t g) h", k=key.shape[1])
    group = query.shape[2] // key.shape[1]
    last_seen = jnp.where(seen.any(axis=(0, 1)), jnp.arange(slots), 0).max()

    def one_block(i, carry):
        top, total, out = carry  # of each row: its highest score so far; the sum of exp(score - top); that of values
        start = jnp.minimum(i * block, slots - block)  # the last block may begin within the one before it
        keys, values, sees = (jax.lax.dynamic_slice_in_dim(x, start, block, axis=2) for x in (key, value, seen))
        sees &= start + jnp.arange(block) >= i * block
        values = jnp.where(sees.any(axis=1)[:, None, :, None], values, 0)

        scores = score(rows[:, :, None], keys)[:, :, 0].astype(jnp.float32)
        scores = jnp.where(repeat(sees, "b t s -> b 1 (t g) s", g=group), scores, low)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        weights, faded = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        update = jnp.einsum("bkrs,bksh->bkrh", weights.astype(value.dtype), values, preferred_element_type=jnp.float32)
        return new_top, total * faded + weights.sum(axis=-1), out * faded[..., None] + update

    nothing = jnp.full(rows.shape[:3], low), jnp.zeros(rows.shape[:3]), jnp.zeros(rows.shape)
    _, total, out = jax.lax.fori_loop(0, last_seen // block + 1, one_block, nothing)
    return rearrange((out / total[..., None]).astype(value.dtype), "b k (t g) h -> b t (k g) h", g=group)
