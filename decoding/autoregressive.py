"""The baseline: one token a step, no drafter."""

import functools

import jax
import jax.numpy as jnp

from decoding.rollback import rollback
from decoding.sampling import Sampling, choose, law
from decoding.speculative import count_emitted, row_at
from decoding.state import DecodeState, Round
from gemma4 import Gemma4


@functools.partial(jax.jit, static_argnames=("sampling", "eos_ids"), donate_argnames="state")
def autoregressive_step(
    target: Gemma4, state: DecodeState, sampling: Sampling = Sampling(), eos_ids: tuple[int, ...] = ()
) -> DecodeState:
    """Write the newest token, draw the next one.  The state is donated.  Rows that are done stand still."""
    key, draw_key = jax.random.split(state.key)
    hidden, cache = target(state.token[:, None], state.cache)
    probs = law(target.logits(hidden[:, 0]), sampling)
    tokens = choose(probs, jax.random.uniform(draw_key, state.token.shape))[:, None]
    num_emitted, done = count_emitted(tokens, jnp.ones_like(state.token), state, eos_ids)
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
