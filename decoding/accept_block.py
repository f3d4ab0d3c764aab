"""Stage 3, the other way: the drafts are judged together.  The same law, with more of them accepted.

Sun et al. 2024 (arXiv 2403.10444, ICLR 2025), algorithm 2, "block verification"; their M_b is target_probs here, their M_s
draft_probs.  Token by token, a draft with p < q can end a run although the one before it had p > q, probability to spare.
Here the ratios of a run are multiplied, so that what one has too much makes up for what another lacks.  No rule that is told
the same accepts more on average (their theorem 2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from decoding.accept import Acceptance, at_stop, check_shapes, of_drafts, residual, uniforms_for, with_none_last
from decoding.sampling import choose


def accept_block(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    key: jax.Array,
) -> Acceptance:
    """As `accept`, with the same law and the same errors; never fewer drafts accepted on average, and the same for one."""
    check_shapes(target_probs, draft_tokens, draft_probs)
    return decide_block(target_probs, draft_tokens, draft_probs, uniforms_for(draft_tokens, key))


def decide_block(
    target_probs: Float[Array, "b t v"],  # t = gamma + 1
    draft_tokens: Int[Array, "b gamma"],
    draft_probs: Float[Array, "b gamma v"],
    uniforms: Float[Array, "b gamma+1"],
) -> Acceptance:
    """`accept_block` as a function of its random numbers, in [0, 1): one a draft, and the last one for the next token.

    A run of i drafts has weight w_i (`run_weights`), and w_i p - q, where that is positive, is what the target has over after
    it.  Let s_i be its sum.  The longest run with u_i (s_i + 1 - w_i) < s_i is accepted, also if a shorter one was not; the
    next token is chosen from what is over after it.
    """
    weights = run_weights(of_drafts(target_probs, draft_tokens), of_drafts(draft_probs, draft_tokens))
    weighted, proposed = weights[..., None] * target_probs, with_none_last(draft_probs)
    over = jnp.maximum(weighted - proposed, 0).sum(axis=-1)
    # After the last draft, where q = 0, this is u < w.  Two equal laws after a run of weight 1 leave nothing over and it is not
    # accepted, but the run of one more draft has that weight too, and is.
    accepted = uniforms[:, :-1] * (over + (1 - weights))[:, 1:] < over[:, 1:]
    num_accepted = jnp.where(accepted, jnp.arange(1, accepted.shape[1] + 1, dtype=jnp.int32), 0).max(axis=1, initial=0)
    rest = residual(at_stop(weighted, num_accepted), at_stop(proposed, num_accepted))
    return Acceptance(num_accepted, choose(rest, uniforms[:, -1]))


def run_weights(p: Float[Array, "b gamma"], q: Float[Array, "b gamma"]) -> Float[Array, "b gamma+1"]:
    """w_0 = 1, and w_i = min(w_(i-1) p_i / q_i, 1) for the run of the first i drafts."""
    ratios = p / jnp.maximum(q, jnp.finfo(q.dtype).tiny)
    weights = [jnp.ones(p.shape[0], p.dtype)]
    for i in range(p.shape[1]):
        weights.append(jnp.minimum(weights[-1] * ratios[:, i], 1))
    return jnp.stack(weights, axis=1)
