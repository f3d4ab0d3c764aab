"""Stage 2: one forward pass of the target over the newest token and all drafts, which scores every draft at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4 import Gemma4, KVCache
from gemma4.cache import check_room
from gemma4.model import check_tokens


class Verification(NamedTuple):
    """Index i belongs to input token i of [token, d1 .. dgamma]: the logits that predict the token after it, and their hidden
    state.
    """

    logits: Float[Array, "b gamma+1 v"]
    hidden: Float[Array, "b gamma+1 d"]
    cache: KVCache  # all gamma + 1 tokens written; `rollback` forgets the rejected ones


@jax.named_scope("verify")
def verify(
    target: Gemma4, cache: KVCache, token: Int[Array, " b"], draft_tokens: Int[Array, "b gamma"]
) -> Verification:
    """Score [token, d1 .. dgamma] at positions cache.length .. cache.length + gamma.

    Errors: ValueError if the cache has another batch size, takes fewer than gamma + 1 tokens at once, or (outside jit) has no
    room for them; and (outside jit) for ids that are not the target's.
    """
    tokens = check_tokens(target.config, jnp.concatenate([token[:, None], draft_tokens], axis=1))
    check_room(target.config, cache, *tokens.shape)
    hidden, cache = target(tokens, cache)
    return Verification(target.logits(hidden), hidden, cache)
