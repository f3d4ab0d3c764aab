"""The baseline: one token a step, no drafter."""

import functools

import jax
import jax.numpy as jnp

from decoding.emit import count_emitted, row_at
from decoding.rollback import rollback
from decoding.sampling import draw
from decoding.speculative import Options
from decoding.state import DecodeState, Round
from gemma4 import Gemma4


def step_of(target: Gemma4, state: DecodeState, options: Options) -> DecodeState:
    """Write the newest token, draw the next one.  Rows that are done stand still."""
    key, draw_key = jax.random.split(state.key)
    hidden, cache = target(state.token[:, None], state.cache)
    uniforms = jax.random.uniform(draw_key, state.token.shape)
    tokens = draw(target.logits(hidden[:, 0]), options.sampling, uniforms)[:, None]
    num_emitted, done = count_emitted(
        tokens, jnp.ones_like(state.token), state.budget - state.emitted, state.done, options.eos_ids
    )
    return DecodeState(
        cache=rollback(cache, state.cache.length, num_emitted),
        token=row_at(tokens, num_emitted - 1, state.token),
        hidden=row_at(hidden, num_emitted - 1, state.hidden),
        key=key,
        emitted=state.emitted + num_emitted,
        budget=state.budget,
        done=done,
        last=Round(tokens[:, :0], jnp.zeros_like(num_emitted), tokens, num_emitted),
    )


@functools.partial(jax.jit, static_argnames="options", donate_argnames="state")
def autoregressive_step(target: Gemma4, state: DecodeState, options: Options = Options(draft_length=0)) -> DecodeState:
    """`step_of` as one compiled call.  The state is donated."""
    return step_of(target, state, options)
