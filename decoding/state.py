"""What one round hands to the next: a plain pytree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from decoding.finite import is_finite
from decoding.processors import count_tokens
from gemma4 import KVCache
from gemma4.functional import select_position


class Round(NamedTuple):
    """What a round did, for people and statistics.  The prefill is a round that drafted nothing and emitted one token."""

    draft_tokens: Int[Array, "b gamma"]
    num_accepted: Int[Array, " b"]  # 0..gamma: how many of the drafts the target accepted
    tokens: Int[Array, "b gamma+1"]  # the accepted drafts, then the target's own token; the rest has no meaning
    num_emitted: Int[Array, " b"]  # how many of `tokens` count: up to an EOS or the end of the budget; 0 once done
    logprobs: Float[Array, "b gamma+1"] | None = None  # of `tokens`, if `Options.logprobs`


class DecodeState(NamedTuple):
    """Invariant after the prefill and after every round, for each row: cache.length == prompt length + emitted - 1.

    (The newest token is not in the cache yet: the next round's verify writes it.)
    """

    cache: KVCache
    token: Int[Array, " b"]  # the newest emitted token
    hidden: Float[Array, "b d"]  # the target's hidden state that predicted it
    key: jax.Array  # for all rows, or one for each, [b]
    emitted: Int[Array, " b"]  # tokens emitted so far
    budget: Int[Array, " b"]  # tokens to emit at most
    done: Bool[Array, " b"]  # an EOS was emitted, or the budget is used up
    last: Round
    is_finite: Bool[Array, " b"]  # whether all numbers so far were
    counts: Int[Array, "b v"] | None = None  # of each token in prompt and text, for `Options.processors`


def advance(
    state: DecodeState,
    this_round: Round,
    hidden: Float[Array, "b t d"],
    logits: Float[Array, "b t v"],
    cache: KVCache,
    key: jax.Array,
    done: Bool[Array, " b"],
) -> DecodeState:
    """The state after a round.

    hidden, logits: the target's over [token, d1 .. dgamma], the tokens that this round's forward read.
    The newest token is the last emitted one, tokens[num_emitted - 1].  Hidden state i predicts tokens[i], so hidden state
    num_emitted - 1 predicted the newest token, and the drafter continues from there.  A row that was done keeps what it had.
    """
    newest = this_round.num_emitted - 1
    return DecodeState(
        cache=cache,
        token=_select_or_keep(this_round.tokens, newest, state.token),
        hidden=_select_or_keep(hidden, newest, state.hidden),  # the hidden state that predicted that token
        key=key,
        emitted=state.emitted + this_round.num_emitted,
        budget=state.budget,
        done=done,
        last=this_round,
        is_finite=state.is_finite & is_finite(logits),
        counts=count_tokens(state.counts, this_round.tokens, this_round.num_emitted),
    )


def _select_or_keep(
    values: Shaped[Array, "b t *rest"], index: Int[Array, " b"], old: Shaped[Array, "b *rest"]
) -> Shaped[Array, "b *rest"]:
    """values[i, index[i]] for each row i; old[i] where the index is negative."""
    is_old = (index < 0).reshape(-1, *[1] * (old.ndim - 1))
    return jnp.where(is_old, old, select_position(values, index))
