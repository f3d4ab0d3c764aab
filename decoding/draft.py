"""Stage 1: the drafter proposes gamma tokens, one after the other, all from one constant position."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from decoding.sampling import Sampling, choose, law
from drafter import Drafter, SharedCache
from drafter.model import step
from gemma4 import Gemma4


class Draft(NamedTuple):
    tokens: Int[Array, "b gamma"]
    probs: Float[Array, "b gamma v"]  # the law that each token was drawn from: one-hot if it was taken greedily


# Jitted for who calls it by itself: outside of compiled code a scan is compiled anew at every call.
@functools.partial(jax.jit, static_argnames=("draft_length", "sampling"))
def draft(
    target: Gemma4,
    drafter: Drafter,
    token: Int[Array, " b"],
    hidden: Float[Array, "b d"],
    shared: SharedCache,
    key: jax.Array,
    *,
    draft_length: int,
    sampling: Sampling = Sampling(),
) -> Draft:
    """Propose `draft_length` tokens to follow `token`, each by a step of the drafter on the target's (scaled) embedding of the
    token before it and the hidden row that the step before it returned.  `shared` stays as it is.

    token, hidden: the newest emitted token, and the target's hidden row that predicted it (one position earlier).
    key:           of one uniform number for each draft and row, [draft_length, b].
    sampling:      how drafts are drawn from the drafter's law; greedy unless given.  Whatever it is, the law returned is
                   the law that was drawn from: acceptance is exact only then.
    Errors:        ValueError if the rows are not as many as the cache's.
    """

    def one(newest: tuple[Array, Array], uniforms: Array) -> tuple[tuple[Array, Array], Draft]:
        token, hidden = newest
        # The target's embedding, scaled; the drafter's own table is only its head.
        normed, hidden = step(drafter, target.embed_tokens(token), hidden, shared)
        token, probs = _draw(drafter, normed, sampling, uniforms)
        return (token, hidden), Draft(token, probs)

    # A loop in the compiled code, too: unrolled, a round of eight drafts took twice as long to compile and was no faster.
    hidden = hidden.astype(jnp.result_type(hidden, drafter.embed_tokens.weight[...]))  # as the drafter returns it
    uniforms = jax.random.uniform(key, (draft_length, token.shape[0]))
    _, block = jax.lax.scan(one, (token, hidden), uniforms)
    return jax.tree.map(lambda steps: jnp.moveaxis(steps, 0, 1), block)


def _draw(drafter, normed, sampling, uniforms):
    if sampling.is_greedy:  # a clustered head finds its best token without writing the others' logits down
        token = drafter.argmax(normed)
        return token, jax.nn.one_hot(token, drafter.config.text.vocab_size, dtype=jnp.float32)
    probs = law(drafter.logits(normed), sampling)
    return choose(probs, uniforms), probs
