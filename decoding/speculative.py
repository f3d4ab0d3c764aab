"""One round of speculative decoding.  `loops.py` runs rounds until the text is done.

share -> draft -> verify -> accept -> emit -> rollback
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from decoding.accept import Acceptance, accept, accept_greedy
from decoding.accept_block import accept_block
from decoding.draft import Draft, draft
from decoding.emit import count_emitted, row_at, with_next_token
from decoding.rollback import rollback
from decoding.sampling import Sampling, law
from decoding.state import DecodeState, Round
from decoding.verify import verify
from drafter import Drafter, share_cache
from gemma4 import Gemma4

LONGEST_DRAFT = 32  # a round; acceptance falls with every position, so that no drafter gains from more
RULES = ("token", "block")  # how sampled drafts are judged, one by one or together; either keeps the text's law


class Options(NamedTuple):
    """What a round is compiled for."""

    draft_length: int = 4  # gamma
    sampling: Sampling = Sampling()  # of the target: what the text is drawn from
    draft_sampling: Sampling = Sampling()  # of the drafter, greedy unless given: moves acceptance, never the text's law
    eos_ids: tuple[int, ...] = ()
    acceptance: str = "token"  # of RULES; where the text is greedy they are one


def rule_of(acceptance: object) -> Callable[..., Acceptance]:
    """Errors: ValueError for a name that is not one of RULES."""
    if acceptance not in RULES:
        raise ValueError(f"acceptance: expected {' or '.join(map(repr, RULES))}, got {acceptance!r}")
    return accept if acceptance == "token" else accept_block


Judge = Callable[[jax.Array, Draft, Options, jax.Array], Acceptance]


@jax.named_scope("accept")
def judge(logits: Float[Array, "b t v"], block: Draft, options: Options, key: jax.Array) -> Acceptance:
    """Which drafts stay, by the law that the text is drawn from."""
    if options.sampling.is_greedy:
        return accept_greedy(logits, block.tokens)
    rule = rule_of(options.acceptance)
    return rule(law(logits, options.sampling), block.tokens, block.probs, key)


def round_of(
    target: Gemma4, drafter: Drafter, state: DecodeState, options: Options, judge: Judge = judge
) -> DecodeState:
    """All stages of one round.  Rows that are done stand still.

    judge:  what decides about drafts; another one than the default only to simulate.
    Errors: ValueError for more than LONGEST_DRAFT drafts, for which a prefill leaves no room.
    """
    if options.draft_length > LONGEST_DRAFT:
        raise ValueError(f"draft_length: expected at most {LONGEST_DRAFT} tokens a round, got {options.draft_length}")
    key, draft_key, accept_key = jax.random.split(state.key, 3)
    shared = share_cache(state.cache, target.config)

    block = draft(
        target, drafter, state.token, state.hidden, shared, draft_key,
        draft_length=options.draft_length, sampling=options.draft_sampling,
    )  # fmt: skip
    verified = verify(target, state.cache, state.token, block.tokens)
    verdict = judge(verified.logits, block, options, accept_key)

    tokens = with_next_token(block.tokens, verdict.num_accepted, verdict.next_token)
    num_emitted, done = count_emitted(
        tokens, verdict.num_accepted + 1, state.budget - state.emitted, state.done, options.eos_ids
    )
    return DecodeState(
        cache=rollback(verified.cache, state.cache.length, num_emitted),
        token=row_at(tokens, num_emitted - 1, state.token),
        hidden=row_at(verified.hidden, num_emitted - 1, state.hidden),
        key=key,
        emitted=state.emitted + num_emitted,
        budget=state.budget,
        done=done,
        last=Round(block.tokens, verdict.num_accepted, tokens, num_emitted),
    )


@functools.partial(jax.jit, static_argnames="options", donate_argnames="state")
def speculative_step(target: Gemma4, drafter: Drafter, state: DecodeState, options: Options = Options()) -> DecodeState:
    """`round_of` as one compiled call.  The state is donated: its buffers are reused, so keep only what is returned."""
    return round_of(target, drafter, state, options)
