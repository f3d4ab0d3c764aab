"""Stage 3, another method: block verification.  (That it keeps the target's distribution: tests/properties/test_law.py.)"""

import jax.numpy as jnp
import numpy as np

from decoding.stages.accept_block import decide_block, run_weights
from tests.draws import first_above, sixteenths


def decide_block_by_loop(target_probs, draft_tokens, draft_probs, uniforms) -> tuple[int, int]:
    """One row of `decide_block`, run by run."""
    gamma, weight, longest = len(draft_tokens), 1.0, 0
    weights = [weight]
    for i in range(gamma):
        token = draft_tokens[i]
        weight = min(weight * target_probs[i, token] / draft_probs[i, token], 1)
        weights.append(weight)
        following = draft_probs[i + 1] if i + 1 < gamma else 0
        surplus = np.maximum(weight * target_probs[i + 1] - following, 0).sum()
        if uniforms[i] * (surplus + 1 - weight) < surplus:
            longest = i + 1
    following = draft_probs[longest] if longest < gamma else 0
    rest = np.maximum(weights[longest] * target_probs[longest] - following, 0)
    return longest, first_above(rest if rest.sum() else target_probs[longest], uniforms[gamma])


def test_decide_block_equals_a_loop():
    """400 rows, token for token.  Draft probabilities are powers of two, so that ratios, too, are exact in float32."""
    rng, rows, gamma, vocabulary = np.random.default_rng(0), 400, 3, 4
    target_probs = sixteenths(rng, rows, gamma + 1, vocabulary=vocabulary)
    draft_probs = rng.permuted(np.tile(np.float32([1 / 2, 1 / 4, 1 / 8, 1 / 8]), (rows, gamma, 1)), axis=-1)
    draft_tokens = np.int32([[rng.choice(vocabulary, p=q) for q in row] for row in draft_probs])
    uniforms = np.float32(rng.integers(0, 64, (rows, gamma + 1)) / 64)  # many are exactly at a threshold
    given = target_probs, draft_tokens, draft_probs, uniforms
    result = decide_block(*map(jnp.asarray, given))
    expected = [decide_block_by_loop(*row) for row in zip(*given, strict=True)]
    assert list(zip(result.num_accepted.tolist(), result.next_token.tolist(), strict=True)) == expected
    assert set(result.num_accepted.tolist()) == set(range(gamma + 1))


def test_accept_block_by_hand():
    """A first draft of weight 0.5, and a second one that makes up for it, or does not."""
    q = jnp.array([[[0.2, 0.8, 0.0], [0.5, 0.3, 0.2]]])
    p = jnp.array([[[0.3, 0.4, 0.3], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]])

    def of(drafts, *uniforms):
        result = decide_block(p, jnp.array([drafts]), q, jnp.array([uniforms]))
        return int(result.num_accepted[0]), int(result.next_token[0])

    assert of([1, 1], 0.99, 0.99, 0.4) == (2, 0), (
        "0.4/0.8 x 0.6/0.3 = 1, whatever the uniforms; then from the last distribution itself"
    )
    # Drafts [1, 0] weigh 0.5 and 0.5 x 0.1/0.5 = 0.1; after the first there is no surplus: 0.5 p - q is nowhere positive.
    assert of([1, 0], 0.0, 0.09, 0.6) == (2, 1), "a run of two, where one alone is never accepted"
    assert of([1, 0], 0.0, 0.11, 0.2) == (0, 0), (
        "neither; the residual is 0.1 and 0.3 at tokens 0 and 2, and 0.2 < 0.25"
    )
    # With q = 0.1 at token 1, 0.5 p - q leaves 0.2 there: a run of one is accepted below 0.2 / (0.2 + 1 - 0.5) = 0.286.
    q = q.at[0, 1].set(jnp.array([0.5, 0.1, 0.4]))
    assert of([1, 0], 0.28, 0.11, 0.5) == (1, 1) and of([1, 0], 0.29, 0.11, 0.5) == (0, 2)


def test_run_weights_by_hand():
    """A weight is at most 1, so that a surplus does not last.  q = 0 gives no NaN."""
    p, q = jnp.array([[0.5, 0.9, 0.2], [0.2, 0.0, 0.4]]), jnp.array([[0.25, 0.9, 0.4], [0.4, 0.0, 0.2]])
    np.testing.assert_allclose(run_weights(p, q), [[1, 1, 1, 0.5], [1, 0.5, 0, 0]])
