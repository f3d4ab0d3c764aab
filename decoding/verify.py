"""Stage 2: one forward of the target over the newest token and all drafts says what the target thinks of each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4 import Gemma4, KVCache
from gemma4.cache import check_room
from gemma4.model import check_tokens


class Verification(NamedTuple):
    """Row i of `logits` is the target's view of the token after `[token, d1 .. dgamma][i]`; `hidden` is what it came from."""

    logits: Float[Array, "b gamma+1 v"]
    hidden: Float[Array, "b gamma+1 d"]
    cache: KVCache  # all gamma + 1 tokens written; `rollback` takes back the rejected ones


@jax.named_scope("verify")
def verify(
    target: Gemma4, cache: KVCache, token: Int[Array, " b"], draft_tokens: Int[Array, "b gamma"]
) -> Verification:
    """Score [token, d1 .. dgamma], which stand at positions cache.length .. cache.length + gamma.

    Errors: ValueError if the cache has another batch size, takes fewer than gamma + 1 tokens at once, or (outside jit) has no
    room for them; and (outside jit) for ids that are not the target's.
    """
    block = check_tokens(target.config, jnp.concatenate([token[:, None], draft_tokens], axis=1))
    check_room(target.config, cache, *block.shape)
    hidden, cache = target(block, cache)
    return Verification(target.logits(hidden), hidden, cache)
