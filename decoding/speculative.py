"""One round of speculative decoding, and the loop over rounds.

share -> draft -> verify -> accept -> emit -> rollback
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from decoding.accept import Acceptance, accept, accept_greedy
from decoding.draft import Draft, draft
from decoding.rollback import rollback
from decoding.sampling import Sampling, law
from decoding.state import DecodeState, Round
from decoding.verify import verify
from drafter import Drafter, share_cache
from gemma4 import Gemma4
from gemma4.model import one_row


class Options(NamedTuple):
    """What a round is compiled for."""

    draft_length: int = 4  # gamma
    sampling: Sampling = Sampling()  # of the target: what the text is drawn from
    draft_sampling: Sampling = Sampling()  # of the drafter: moves acceptance, never the text's law
    eos_ids: tuple[int, ...] = ()


Judge = Callable[[jax.Array, Draft, Options, jax.Array], Acceptance]


def judge(logits: Float[Array, "b t v"], block: Draft, options: Options, key: jax.Array) -> Acceptance:
    """Which drafts stay, by the law that the text is drawn from."""
    if options.sampling.temperature == 0:
        return accept_greedy(logits, block.tokens)
    return accept(law(logits, options.sampling), block.tokens, block.probs, key)


def round_of(
    target: Gemma4, drafter: Drafter, state: DecodeState, options: Options, judge: Judge = judge
) -> DecodeState:
    """All stages of one round.  Rows that are done stand still.

    judge: what decides about drafts; another one than the default only to simulate.
    """
    key, draft_key, accept_key = jax.random.split(state.key, 3)
    shared = share_cache(state.cache, target.config)

    block = draft(
        target, drafter, state.token, state.hidden, shared, draft_key,
        draft_length=options.draft_length, sampling=options.draft_sampling,
    )  # fmt: skip
    verdict = verify(target, state.cache, state.token, block.tokens)
    result = judge(verdict.logits, block, options, accept_key)

    tokens = with_next_token(block.tokens, result.num_accepted, result.next_token)
    num_emitted, done = count_emitted(tokens, result.num_accepted + 1, state, options.eos_ids)
    return DecodeState(
        cache=rollback(verdict.cache, state.cache.length, num_emitted),
        token=row_at(tokens, num_emitted - 1, state.token),
        hidden=row_at(verdict.hidden, num_emitted - 1, state.hidden),
        key=key,
        emitted=state.emitted + num_emitted,
        budget=state.budget,
        done=done,
        last=Round(block.tokens, result.num_accepted, tokens, num_emitted),
    )


@functools.partial(jax.jit, static_argnames="options", donate_argnames="state")
def speculative_step(target: Gemma4, drafter: Drafter, state: DecodeState, options: Options = Options()) -> DecodeState:
    """`round_of` as one compiled call.  The state is donated: its buffers are reused, so keep only what is returned."""
    return round_of(target, drafter, state, options)


def with_next_token(
    draft_tokens: Int[Array, "b gamma"], num_accepted: Int[Array, " b"], next_token: Int[Array, " b"]
) -> Int[Array, "b gamma+1"]:
    """[d1 .. dn, next, ...]: what a round emits, and rejected drafts after it."""
    places = jnp.arange(draft_tokens.shape[1] + 1)
    padded = jnp.pad(draft_tokens, ((0, 0), (0, 1)))
    return jnp.where(places == num_accepted[:, None], next_token[:, None], padded)


def count_emitted(
    tokens: Int[Array, "b t"], num_tokens: Int[Array, " b"], state: DecodeState, eos_ids: tuple[int, ...]
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """How many of a round's first `num_tokens` tokens count, and which rows are done after them.

    A run ends after its first EOS, wherever that stands, and where the budget does; a row that was done emits nothing.
    """
    places = jnp.arange(tokens.shape[1])
    is_eos = jnp.isin(tokens, jnp.array(eos_ids, jnp.int32)) & (places < num_tokens[:, None])
    first_eos = jnp.where(is_eos, places, tokens.shape[1]).min(axis=1)
    room = state.budget - state.emitted
    num_emitted = jnp.where(state.done, 0, jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room))
    return num_emitted, state.done | (num_emitted == room) | (first_eos < num_emitted)


def row_at(rows: Array, index: Int[Array, " b"], otherwise: Array) -> Array:
    """rows[i, index[i]] of each batch row i; `otherwise[i]` where the index is negative (a row that stood still)."""
    chosen = one_row(rows, index)[:, 0]
    return jnp.where((index < 0).reshape(-1, *[1] * (otherwise.ndim - 1)), otherwise, chosen)
