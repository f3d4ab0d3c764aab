"""The baseline: autoregressive decoding, one token a round, without a drafter."""

import functools

import jax
import jax.numpy as jnp

from decoding.options import Options
from decoding.processors import process
from decoding.sampling import draw_uniforms, sample, split_key, token_logprobs
from decoding.stages.emit import count_emitted
from decoding.stages.rollback import rollback
from decoding.state import DecodeState, Round, advance
from gemma4 import Gemma4


def autoregressive_round(target: Gemma4, state: DecodeState, options: Options) -> DecodeState:
    """Write the newest token, draw the next one.  Rows that are done emit nothing and stay as they are."""
    key, sample_key = split_key(state.key)
    hidden, cache = target(state.token[:, None], state.cache)
    uniforms = draw_uniforms(sample_key, state.token.shape)
    logits = target.logits(hidden[:, 0])[:, None]
    processed = process(logits, state.token[:, None][:, :0], state.counts, options.processors)
    tokens = sample(processed[:, 0], options.sampling, uniforms, options.kernels)[:, None]

    one, room = jnp.ones_like(state.token), state.budget - state.emitted
    num_emitted, done = count_emitted(tokens, one, room, state.done, options.eos_ids)
    cache = rollback(cache, state.cache.length, num_emitted)

    logprobs = token_logprobs(logits, tokens) if options.logprobs else None
    this_round = Round(tokens[:, :0], jnp.zeros_like(num_emitted), tokens, num_emitted, logprobs)
    return advance(state, this_round, hidden, logits, cache, key, done)


@functools.partial(jax.jit, donate_argnames="state")
def autoregressive_step(target: Gemma4, state: DecodeState, options: Options = Options(draft_length=0)) -> DecodeState:
    """`autoregressive_round` as one compiled call.  The state is donated."""
    return autoregressive_round(target, state, options)
