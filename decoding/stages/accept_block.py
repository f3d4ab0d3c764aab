"""Stage 3, another method: block verification.  Drafts are judged together; the same distribution, with more of them accepted.

Sun et al. 2024 (arXiv 2403.10444, ICLR 2025), algorithm 2; their M_b is target_probs here, their M_s draft_probs.  Token by
token, a draft with p < q can end a run although the one before it had p > q, probability to spare.  Here the ratios of a run
are multiplied, so that a surplus at one place makes up for a deficit at another.  Optimal among rules with the same
information (their theorem 2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from decoding.sampling import REFERENCE, Kernels
from decoding.stages.accept import Acceptance, check_shapes, pad_with_zero, probs_of, residual, uniforms_for
from gemma4.functional import select_position


def accept_block(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    key: jax.Array,
    kernels: Kernels = REFERENCE,
) -> Acceptance:
    """As `accept`: the same distribution of the text and the same errors.

    On average it accepts at least as many drafts, and as many where there is one draft.
    """
    check_shapes(target_probs, draft_tokens, draft_probs)
    return decide_block(target_probs, draft_tokens, draft_probs, uniforms_for(draft_tokens, key), kernels)


def decide_block(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    uniforms: Float[Array, "b gamma+1"],
    kernels: Kernels = REFERENCE,
) -> Acceptance:
    """`accept_block` as a function of its random numbers, in [0, 1): one for each draft, and the last one for the next token.

    A run of i drafts has weight w_i (`run_weights`), and the residual after it is max(w_i p - q, 0), with sum s_i.
    The longest run with u_i (s_i + 1 - w_i) < s_i is accepted, even if a shorter one is not; the next token is drawn from the
    residual after it.
    """
    weights = run_weights(probs_of(draft_tokens, target_probs), probs_of(draft_tokens, draft_probs))
    weighted, proposed = weights[..., None] * target_probs, pad_with_zero(draft_probs)
    surplus = jnp.maximum(weighted - proposed, 0).sum(axis=-1)
    # Index 0, no draft, is always possible and needs no test.  At the last index q = 0, so that the test is u < w.  Where both
    # surplus and 1 - w are 0 (p equals q after a run of weight 1, 0/0 in the paper's h_i), that run is not accepted; but the
    # run of one more draft has weight 1, too, and the last such run is accepted.
    accepted = uniforms[:, :-1] * (surplus + (1 - weights))[:, 1:] < surplus[:, 1:]
    num_accepted = jnp.where(accepted, jnp.arange(1, accepted.shape[1] + 1, dtype=jnp.int32), 0).max(axis=1, initial=0)
    rest = residual(select_position(weighted, num_accepted), select_position(proposed, num_accepted))
    return Acceptance(num_accepted, kernels.sample_from(rest, uniforms[:, -1]))


def run_weights(p: Float[Array, "b gamma"], q: Float[Array, "b gamma"]) -> Float[Array, "b gamma+1"]:
    """w_0 = 1, and w_i = min(w_(i-1) p_i / q_i, 1) for the run of the first i drafts."""
    ratios = p / jnp.maximum(q, jnp.finfo(q.dtype).tiny)
    weights = [jnp.ones(p.shape[0], p.dtype)]
    for i in range(p.shape[1]):
        weights.append(jnp.minimum(weights[-1] * ratios[:, i], 1))
    return jnp.stack(weights, axis=1)
