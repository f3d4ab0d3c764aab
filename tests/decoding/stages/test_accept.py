"""Stage 3: rejection sampling.  (That it keeps the target's distribution: tests/properties/test_law.py.)"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding.stages.accept import check_shapes, count_leading, decide, pad_with_zero, probs_of, residual
from tests.draws import first_above, sixteenths


def decide_by_loop(target_probs, draft_tokens, draft_probs, uniforms) -> tuple[int, int]:
    """One row of `decide`, draft by draft."""
    gamma = len(draft_tokens)
    for i in range(gamma):
        p, q = target_probs[i], draft_probs[i]
        if uniforms[i] * q[draft_tokens[i]] >= p[draft_tokens[i]]:
            return i, first_above(np.maximum(p - q, 0), uniforms[gamma])
    return gamma, first_above(target_probs[gamma], uniforms[gamma])


def test_decide_equals_a_loop():
    """400 rows, token for token."""
    rng, rows, gamma, vocabulary = np.random.default_rng(0), 400, 3, 5
    target_probs = sixteenths(rng, rows, gamma + 1, vocabulary=vocabulary)
    draft_probs = sixteenths(rng, rows, gamma, vocabulary=vocabulary)
    draft_tokens = np.int32([[rng.choice(vocabulary, p=q) for q in row] for row in draft_probs])
    uniforms = np.float32(rng.integers(0, 64, (rows, gamma + 1)) / 64)  # many are exactly at a threshold
    given = target_probs, draft_tokens, draft_probs, uniforms
    result = decide(*map(jnp.asarray, given))
    expected = [decide_by_loop(*row) for row in zip(*given, strict=True)]
    assert list(zip(result.num_accepted.tolist(), result.next_token.tolist(), strict=True)) == expected
    assert set(result.num_accepted.tolist()) == set(range(gamma + 1))


def test_accept_by_hand():
    """p/q is 0.5 and then 2: the first draft is accepted if u < 0.5, the second always; then the residual, or the bonus."""
    q = jnp.array([[[0.2, 0.8, 0.0], [0.3, 0.3, 0.4]]])
    p = jnp.array([[[0.3, 0.4, 0.3], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]])
    tokens = jnp.array([[1, 1]])

    def of(*uniforms):
        result = decide(p, tokens, q, jnp.array([uniforms]))
        return int(result.num_accepted[0]), int(result.next_token[0])

    assert of(0.51, 0.0, 0.2) == (0, 0), "rejected; the residual is 0.1 and 0.3 at tokens 0 and 2, and 0.2 < 0.25"
    assert of(0.51, 0.0, 0.3) == (0, 2), "rejected; 0.3 > 0.25"
    assert of(0.49, 0.99, 0.4) == (2, 0), "all accepted: from the last distribution itself"
    assert of(0.49, 0.99, 0.6) == (2, 1)


def test_the_shared_functions_by_hand():
    probs = jnp.array([[[0.2, 0.8, 0.0], [0.3, 0.3, 0.4]]])
    np.testing.assert_array_equal(probs_of(jnp.array([[1, 2]]), pad_with_zero(probs)), [probs[0, [0, 1], [1, 2]]])
    np.testing.assert_array_equal(pad_with_zero(probs)[0], [*probs[0], [0, 0, 0]])
    flags = jnp.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]], bool)
    assert count_leading(flags).tolist() == [0, 1, 2, 3]


def test_residual_falls_back_to_the_target_where_p_equals_q():
    """Also where rounding alone separates them.  Row by row, and an impossible token stays impossible."""
    p = jnp.array([[0.0, 0.3, np.nextafter(np.float32(0.7), np.float32(0))], [0.5, 0.5, 0.0]])
    q = jnp.array([[0.0, 0.3, 0.7], [0.25, 0.75, 0.0]])
    np.testing.assert_array_equal(residual(p, q), [p[0], [0.25, 0.0, 0.0]])
    np.testing.assert_array_equal(residual(p, p), p)


each_method = pytest.mark.parametrize("accept", [decoding.accept, decoding.accept_block])


@each_method
def test_target_probs_of_another_shape(accept):
    def uniform(*shape: int) -> jax.Array:
        return jnp.full((*shape, 3), 1 / 3)

    with pytest.raises(
        ValueError, match=r"accept: .*target's probabilities .* for 2 drafts in 1 rows, got \(1, 2, 3\)"
    ):
        accept(uniform(1, 2), jnp.zeros((1, 2), jnp.int32), uniform(1, 2), jax.random.key(0))


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 2, 3), (1, 2, 4)], ids=str)
def test_draft_probs_of_another_shape(shape):
    """The annotations of `accept` refuse them, too, but they are checked in tests alone."""
    with pytest.raises(ValueError, match="accept: expected draft_probs .* for 2 drafts in 1 rows over 3 tokens"):
        check_shapes(jnp.zeros((1, 3, 3)), jnp.zeros((1, 2), jnp.int32), jnp.zeros(shape))


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_accept_greedy_of_logits_of_another_shape(positions):
    """One position for each draft and one more; with fewer or more, the comparison would broadcast."""
    with pytest.raises(ValueError, match=r"accept: .* for 3 drafts in 1 rows, got \(1, \d, 9\)"):
        decoding.accept_greedy(jnp.zeros((1, positions, 9)), jnp.zeros((1, 3), jnp.int32))


@pytest.mark.parametrize("tokens", [[[1, 2]], np.array([1, 2]), np.array([[1.0, 2.0]])], ids=["list", "1-D", "float"])
def test_draft_tokens_that_are_no_array_of_tokens(tokens):
    check = inspect.unwrap(check_shapes)  # without the annotations, which are checked in tests alone
    with pytest.raises(ValueError, match=r"accept: expected draft_tokens as an array of whole numbers \[b, gamma\]"):
        check(jnp.full((1, 3, 3), 1 / 3), tokens)


@each_method
def test_a_round_without_drafts_is_a_step(accept):
    """The next token is drawn from the target's distribution."""
    one_hot = jax.nn.one_hot(jnp.array([[2], [0]]), 3)
    no_drafts = jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 0, 3))
    num_accepted, next_token = accept(one_hot, *no_drafts, jax.random.key(0))
    assert (num_accepted.tolist(), next_token.tolist()) == ([0, 0], [2, 0])


def test_accept_greedy_by_hand():
    """The longest run of drafts that are the argmax, then the argmax after it; the lowest id among equals."""
    logits = jnp.array([[[0.0, 2.0, 1.0], [3.0, 3.0, 1.0], [0.0, 1.0, 5.0]]])

    def of(*drafts: int) -> tuple[int, int]:
        result = decoding.accept_greedy(logits, jnp.array([drafts]))
        return int(result.num_accepted[0]), int(result.next_token[0])

    assert of(1, 0) == (2, 2)
    assert of(1, 1) == (1, 0), "token 1 has the same logit as token 0, but a higher id"
    assert of(2, 0) == (0, 1), "a right draft after a wrong one does not count"
