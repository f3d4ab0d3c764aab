"""Stage 3: keep the longest prefix of the draft that leaves the target's law exact, and add one token of the target's.

Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1; their p is target_probs here, their q draft_probs (Chen et al. 2023,
arXiv 2302.01318, swap the letters).  Token by token; `accept_block.py` judges the drafts as a block, and keeps more of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from decoding.sampling import choose
from gemma4.functional import argmax


class Acceptance(NamedTuple):
    num_accepted: Int[Array, " b"]  # 0..gamma
    next_token: Int[Array, " b"]  # the target's own token, after the accepted ones


def accept(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    key: jax.Array,
) -> Acceptance:
    """Accept or reject each draft with one uniform number, and draw the next token with one more.

    The emitted tokens follow target_probs exactly, for every drafter, if draft_tokens were drawn from draft_probs; a greedy
    draft was drawn from a one-hot law.  Rows are independent.
    Errors:  ValueError if the shapes do not fit.
    Example: draft_probs == target_probs[:, :-1] accepts everything.
    """
    check_shapes(target_probs, draft_tokens, draft_probs)
    return decide(target_probs, draft_tokens, draft_probs, uniforms_for(draft_tokens, key))


def accept_greedy(target_logits: Float[Array, "b t v"], draft_tokens: Int[Array, "b gamma"]) -> Acceptance:
    """`accept` where the target's law is one-hot: a draft is accepted if it is the target's argmax, however it was drawn.

    The same result for every uniform number, without any (p is 1 or 0, so that u · q < p does not depend on u).
    Errors: ValueError if the shapes do not fit.
    """
    check_shapes(target_logits, draft_tokens)
    choices = argmax(target_logits)
    num_accepted = count_leading(draft_tokens == choices[:, :-1])
    return Acceptance(num_accepted, jnp.take_along_axis(choices, num_accepted[:, None], axis=1)[:, 0])


def decide(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    uniforms: Float[Array, "b gamma+1"],
) -> Acceptance:
    """`accept` as a function of its random numbers, in [0, 1): one a draft, and the last one for the next token.

    A draft is accepted if u · q < p, up to the first that is not.  The next token is chosen from what that one left over
    (`residual`), or after the last draft, where q is 0, from the target's law.
    """
    p, q = of_drafts(target_probs, draft_tokens), of_drafts(draft_probs, draft_tokens)
    num_accepted = count_leading(uniforms[:, :-1] * q < p)  # u < p/q, without a division: q = 0 needs no care
    rest = residual(at_stop(target_probs, num_accepted), at_stop(with_none_last(draft_probs), num_accepted))
    return Acceptance(num_accepted, choose(rest, uniforms[:, -1]))


def residual(target_probs: Float[Array, "*batch v"], draft_probs: Float[Array, "*batch v"]) -> Float[Array, "*batch v"]:
    """max(p - q, 0), up to its sum: where the target has more probability than the drafts already gave it.

    Where p and q differ by rounding alone it can be zero everywhere; then p itself stands in.
    """
    rest = jnp.maximum(target_probs - draft_probs, 0)
    return jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)


# -- shared by both ways to accept -------------------------------------------------------------------------------------


def check_shapes(target: Array, draft_tokens: Array, draft_probs: Array | None = None) -> None:
    """target: its law or logits.  Errors: ValueError unless there is a row for each draft and one more."""
    is_array = isinstance(draft_tokens, (jax.Array, np.ndarray)) and jnp.issubdtype(draft_tokens.dtype, jnp.integer)
    if not is_array or draft_tokens.ndim != 2:
        raise ValueError(
            f"accept: expected draft_tokens as an array of whole numbers [b, gamma], got {draft_tokens!r:.80}"
        )
    (batch, gamma), vocabulary = draft_tokens.shape, target.shape[-1]
    if target.shape != (batch, gamma + 1, vocabulary):
        raise ValueError(
            f"accept: expected the target's rows as [b, gamma + 1, v] for {gamma} drafts in {batch} rows, got {target.shape}"
        )
    if draft_probs is not None and draft_probs.shape != (batch, gamma, vocabulary):
        raise ValueError(
            f"accept: expected draft_probs as [b, gamma, v] for {gamma} drafts in {batch} rows over {vocabulary} tokens, got "
            f"{draft_probs.shape}"
        )


def uniforms_for(draft_tokens: Int[Array, "b gamma"], key: jax.Array) -> Float[Array, "b gamma+1"]:
    """One for each draft and one for the next token."""
    batch, gamma = draft_tokens.shape
    return jax.random.uniform(key, (batch, gamma + 1))


def of_drafts(probs: Float[Array, "b t v"], draft_tokens: Int[Array, "b gamma"]) -> Float[Array, "b gamma"]:
    """The probability of each draft."""
    return jnp.take_along_axis(probs[:, : draft_tokens.shape[1]], draft_tokens[..., None], axis=-1)[..., 0]


def count_leading(flags: Bool[Array, "b gamma"]) -> Int[Array, " b"]:
    return jnp.cumprod(flags, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)


def with_none_last(draft_probs: Float[Array, "b gamma v"]) -> Float[Array, "b gamma+1 v"]:
    """q at each place where a round may stop.  After the last draft nothing was proposed: q = 0 there, and the residual is the
    target's law itself."""
    return jnp.pad(draft_probs, ((0, 0), (0, 1), (0, 0)))


def at_stop(probs: Float[Array, "b t v"], num_accepted: Int[Array, " b"]) -> Float[Array, "b v"]:
    return jnp.take_along_axis(probs, num_accepted[:, None, None], axis=1)[:, 0]
