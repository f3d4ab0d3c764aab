"""Stage 1: the drafter proposes gamma tokens, one after the other, all from one constant position."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from decoding.sampling import REFERENCE, Kernels, Sampling, draw_uniforms, token_probs
from drafter import Drafter, SharedCache
from drafter.model import step
from gemma4 import Gemma4


class Draft(NamedTuple):
    tokens: Int[Array, "b gamma"]
    # The distribution that each token was drawn from; one-hot if it was taken greedily.
    probs: Float[Array, "b gamma v"]


# Jitted for callers outside a jitted round, where a scan would be compiled at every call.
@functools.partial(jax.jit, static_argnames=("draft_length", "kernels"))
def draft(
    target: Gemma4,
    draft_model: Drafter,
    token: Int[Array, " b"],
    hidden: Float[Array, "b d"],
    shared: SharedCache,
    key: jax.Array,
    *,
    draft_length: int,
    sampling: Sampling = Sampling(),
    kernels: Kernels = REFERENCE,
) -> Draft:
    """Propose `draft_length` tokens to follow `token`, one draft step each.  `shared` is only read.

    A step reads the target's (scaled) embedding of the token before it and the hidden state that the step before it returned.

    token, hidden: the newest emitted token, and the target's hidden state that predicted it (one position earlier).
    key:           gives one uniform number for each draft and row, [draft_length, b]; one key, or one for each row.
    sampling:      how drafts are drawn; greedy unless given.  `Draft.probs` is the distribution that they were drawn from,
                   which is what makes acceptance exact.
    Errors:        ValueError if the batch is not the cache's.
    """

    def one_step(newest: tuple[Array, Array], uniforms: Array) -> tuple[tuple[Array, Array], Draft]:
        token, hidden = newest
        normed, hidden = step(draft_model, target.embed_tokens(token), hidden, shared)
        token, probs = _draw(draft_model, normed, sampling, uniforms, kernels)
        return (token, hidden), Draft(token, probs)

    # A scan needs one dtype for what it carries: the one that the drafter returns.
    hidden = hidden.astype(jnp.result_type(hidden, draft_model.embed_tokens.weight[...]))
    uniforms = draw_uniforms(key, (draft_length, token.shape[0]), row_axis=1)
    _, drafted = jax.lax.scan(one_step, (token, hidden), uniforms)
    return jax.tree.map(lambda steps: jnp.moveaxis(steps, 0, 1), drafted)  # [gamma, b, ...] to [b, gamma, ...]


def _draw(
    draft_model: Drafter,
    normed: Float[Array, "b d"],
    sampling: Sampling,
    uniforms: Float[Array, " b"],
    kernels: Kernels = REFERENCE,
) -> tuple[Int[Array, " b"], Float[Array, "b v"]]:
    if sampling.is_greedy:  # a clustered head finds its best token without writing down the others' logits
        token = draft_model.argmax(normed)
        return token, jax.nn.one_hot(token, draft_model.config.text.vocab_size, dtype=jnp.float32)
    probs = token_probs(draft_model.logits(normed), sampling, kernels)
    return kernels.sample_from(probs, uniforms), probs
