"""One round of speculative decoding on one screen.  `generation.py` runs rounds until the text is done.

share -> draft -> verify -> accept -> emit -> rollback
"""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from decoding.finite import is_finite
from decoding.options import Options
from decoding.processors import process
from decoding.sampling import split_key, suppress, token_logprobs, token_probs
from decoding.stages.accept import Acceptance, accept, accept_greedy, uniforms_for
from decoding.stages.accept_block import accept_block
from decoding.stages.draft import Draft, draft
from decoding.stages.emit import count_emitted, with_next_token
from decoding.stages.rollback import rollback
from decoding.stages.verify import verify
from decoding.state import DecodeState, Round, advance
from drafter import Drafter, share_cache
from gemma4 import Gemma4

AcceptFn = Callable[[jax.Array, Draft, Options, jax.Array], Acceptance]


@jax.named_scope("accept")
def accept_drafts(logits: Float[Array, "b t v"], drafted: Draft, options: Options, key: jax.Array) -> Acceptance:
    """Accept or reject the drafts, against the target's distribution after temperature, top-k and top-p."""
    kernels = options.kernels  # argmax, top-k, top-p and sampling: `sampling.REFERENCE`, or faster forms
    if callable(options.acceptance):
        target_probs, uniforms = token_probs(logits, options.sampling, kernels), uniforms_for(drafted.tokens, key)
        return Acceptance(*options.acceptance(target_probs, drafted.tokens, drafted.probs, uniforms))
    if options.sampling.is_greedy:
        return accept_greedy(suppress(logits, options.sampling), drafted.tokens, kernels)
    method = accept_block if options.acceptance == "block" else accept
    return method(token_probs(logits, options.sampling, kernels), drafted.tokens, drafted.probs, key, kernels)


def speculative_round(
    target: Gemma4, draft_model: Drafter, state: DecodeState, options: Options, accept_fn: AcceptFn = accept_drafts
) -> DecodeState:
    """All stages of one round.  Rows that are done emit nothing and stay as they are.

    accept_fn: decides which drafts stay.  With another rule, the text follows the target only if that rule is lossless.
    """
    key, draft_key, accept_key = split_key(state.key, 3)
    shared = share_cache(state.cache, target.config)

    drafted = draft(
        target, draft_model, state.token, state.hidden, shared, draft_key,
        draft_length=options.draft_length, sampling=options.draft_sampling, kernels=options.kernels,
    )  # fmt: skip
    verified = verify(target, state.cache, state.token, drafted.tokens)
    logits = process(verified.logits, drafted.tokens, state.counts, options.processors)
    accepted = accept_fn(logits, drafted, options, accept_key)

    tokens = with_next_token(drafted.tokens, accepted.num_accepted, accepted.next_token)
    room = state.budget - state.emitted
    num_emitted, done = count_emitted(tokens, accepted.num_accepted + 1, room, state.done, options.eos_ids)
    cache = rollback(verified.cache, state.cache.length, num_emitted)

    logprobs = token_logprobs(verified.logits, tokens) if options.logprobs else None
    this_round = Round(drafted.tokens, accepted.num_accepted, tokens, num_emitted, logprobs)
    # The next round drafts from the newest token and from the hidden state that predicted it, number num_emitted - 1.
    state = advance(state, this_round, verified.hidden, verified.logits, cache, key, done)
    if options.drafts_greedily:  # whose q is one-hot, whatever the drafter's numbers are
        return state
    return state._replace(is_finite=state.is_finite & is_finite(drafted.probs))


@functools.partial(jax.jit, donate_argnames="state")
def speculative_step(
    target: Gemma4, draft_model: Drafter, state: DecodeState, options: Options = Options()
) -> DecodeState:
    """`speculative_round` as one compiled call.  The state is donated: its buffers are reused, so keep only the result."""
    return speculative_round(target, draft_model, state, options)
