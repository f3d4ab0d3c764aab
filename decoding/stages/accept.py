"""Stage 3: rejection sampling.  Keep the longest prefix of the draft that leaves the target's distribution exact (lossless),
and add one token of the target's own: a correction after a rejection, the bonus token after full acceptance.

Speculative sampling, Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1; their p is target_probs here, their q draft_probs
(Chen et al. 2023, arXiv 2302.01318, swap the letters).  Drafts are judged one by one; `accept_block.py` judges them together
and keeps more of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from decoding.sampling import REFERENCE, Kernels, draw_uniforms
from gemma4.functional import select_position


class Acceptance(NamedTuple):
    num_accepted: Int[Array, " b"]  # 0..gamma
    next_token: Int[Array, " b"]  # the target's own, after the accepted drafts: a correction, or the bonus token


def accept(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    key: jax.Array,
    kernels: Kernels = REFERENCE,
) -> Acceptance:
    """Accept or reject each draft with one uniform number, and draw the next token with one more.

    The emitted tokens follow target_probs exactly, for every drafter, if draft_tokens were drawn from draft_probs; a greedy
    draft was drawn from a one-hot distribution.  Rows are independent.
    Errors:  ValueError if the shapes do not fit.
    Example: draft_probs == target_probs[:, :-1] accepts everything.
    """
    check_shapes(target_probs, draft_tokens, draft_probs)
    return decide(target_probs, draft_tokens, draft_probs, uniforms_for(draft_tokens, key), kernels)


def accept_greedy(
    target_logits: Float[Array, "b t v"], draft_tokens: Int[Array, "b gamma"], kernels: Kernels = REFERENCE
) -> Acceptance:
    """`accept` where the target's distribution is one-hot: a draft is accepted if it is the target's argmax.

    The same result as `accept` for every uniform number (p is 1 or 0, so u · q < p does not depend on u).
    Errors: ValueError if the shapes do not fit.
    """
    check_shapes(target_logits, draft_tokens)
    choices = kernels.argmax(target_logits)
    num_accepted = count_leading(draft_tokens == choices[:, :-1])
    return Acceptance(num_accepted, select_position(choices, num_accepted))


def decide(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    uniforms: Float[Array, "b gamma+1"],
    kernels: Kernels = REFERENCE,
) -> Acceptance:
    """`accept` as a function of its random numbers, in [0, 1): one for each draft, and the last one for the next token.

    1. A draft is accepted if u < p/q, up to the first that is not.
    2. After a rejection the next token is drawn from the residual distribution there.  After full acceptance nothing was
       proposed, so q is 0 and the residual is the target's distribution itself: the bonus token.
    """
    p, q = probs_of(draft_tokens, target_probs), probs_of(draft_tokens, draft_probs)
    # Rejection sampling: accept if u < p/q, written without a division so that q = 0 needs no care.
    num_accepted = count_leading(uniforms[:, :-1] * q < p)
    p_there = select_position(target_probs, num_accepted)
    q_there = select_position(pad_with_zero(draft_probs), num_accepted)  # 0 after the last draft: the bonus token
    return Acceptance(num_accepted, kernels.sample_from(residual(p_there, q_there), uniforms[:, -1]))


def residual(target_probs: Float[Array, "*batch v"], draft_probs: Float[Array, "*batch v"]) -> Float[Array, "*batch v"]:
    """The residual distribution, not normalised: max(p - q, 0), where the target has more probability than the draft.

    Where p and q differ by rounding alone it can be zero everywhere; then p itself is used.
    """
    rest = jnp.maximum(target_probs - draft_probs, 0)
    return jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)


# -- shared with `accept_block.py` -------------------------------------------------------------------------------------


def check_shapes(target: Array, draft_tokens: Array, draft_probs: Array | None = None) -> None:
    """target: probabilities or logits.  Errors: ValueError unless it has one position for each draft and one more."""
    is_array = isinstance(draft_tokens, (jax.Array, np.ndarray)) and jnp.issubdtype(draft_tokens.dtype, jnp.integer)
    if not is_array or draft_tokens.ndim != 2:
        raise ValueError(
            f"accept: expected draft_tokens as an array of whole numbers [b, gamma], got {draft_tokens!r:.80}"
        )
    (batch, gamma), vocabulary = draft_tokens.shape, target.shape[-1]
    if target.shape != (batch, gamma + 1, vocabulary):
        raise ValueError(
            f"accept: expected the target's probabilities or logits as [b, gamma + 1, v] for {gamma} drafts in {batch} rows, "
            f"got {target.shape}"
        )
    if draft_probs is not None and draft_probs.shape != (batch, gamma, vocabulary):
        raise ValueError(
            f"accept: expected draft_probs as [b, gamma, v] for {gamma} drafts in {batch} rows over {vocabulary} tokens, got "
            f"{draft_probs.shape}"
        )


def uniforms_for(draft_tokens: Int[Array, "b gamma"], key: jax.Array) -> Float[Array, "b gamma+1"]:
    """One uniform number for each draft, and one for the next token."""
    batch, gamma = draft_tokens.shape
    return draw_uniforms(key, (batch, gamma + 1))


def probs_of(draft_tokens: Int[Array, "b gamma"], probs: Float[Array, "b t v"]) -> Float[Array, "b gamma"]:
    """The probability of each draft."""
    return jnp.take_along_axis(probs[:, : draft_tokens.shape[1]], draft_tokens[..., None], axis=-1)[..., 0]


def count_leading(flags: Bool[Array, "b gamma"]) -> Int[Array, " b"]:
    """How many flags are true before the first that is false."""
    return jnp.cumprod(flags, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)


def pad_with_zero(draft_probs: Float[Array, "b gamma v"]) -> Float[Array, "b gamma+1 v"]:
    """q at each place where a round may stop; after the last draft nothing was proposed, so q = 0 there."""
    return jnp.pad(draft_probs, ((0, 0), (0, 1), (0, 0)))
