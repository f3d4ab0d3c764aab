"""From logits to a distribution, and from there to a token, each against a loop over tokens.

Loops and float32 can only agree token for token where nothing is rounded: most probabilities here are sixteenths.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import Sampling
from decoding.sampling import MIN_TEMPERATURE, sample, sample_from, token_probs, top_k_mask, top_p_mask
from gemma4.functional import argmax, softcap
from tests.draws import EDGES, check_draws, check_impossible_tokens, first_above, sixteenths, token_probs_jit

# -- the masks ---------------------------------------------------------------------------------------------------------


def top_k_by_loop(logits: np.ndarray, top_k: int) -> list[bool]:
    """A token stays unless `top_k` others have a higher logit."""
    return [bool((logits > logit).sum() < top_k) for logit in logits]


def top_p_by_loop(probs: np.ndarray, top_p: float) -> list[bool]:
    """The most likely tokens, lower ids first among equals, until their probabilities add up to `top_p`."""
    kept, mass = [False] * len(probs), 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], token)):
        if mass >= top_p:
            break
        kept[token] = True
        mass += probs[token]
    return kept


@pytest.mark.parametrize("top_k", [1, 3, 11])
def test_top_k_mask_equals_a_loop(top_k):
    """Whole logits, so that many are equal, and some that are impossible."""
    rng = np.random.default_rng(0)
    logits = np.where(rng.random((64, 12)) < 0.2, -np.inf, rng.integers(-3, 4, (64, 12))).astype(np.float32)
    expected = [top_k_by_loop(row, top_k) for row in logits]
    np.testing.assert_array_equal(top_k_mask(jnp.asarray(logits), top_k), expected)


@pytest.mark.parametrize("top_p", [1e-6, 1 / 16, 0.5, 0.6, 15 / 16, 1.0])
def test_top_p_mask_equals_a_loop(top_p):
    """Of 16 sixteenths over 6 tokens many are equal, some are 0, and many sums reach `top_p` exactly."""
    probs = sixteenths(np.random.default_rng(0), 256, vocabulary=6)
    expected = [top_p_by_loop(row, top_p) for row in probs]
    np.testing.assert_array_equal(top_p_mask(jnp.asarray(probs), top_p), expected)


@pytest.mark.parametrize(
    "probs, top_p, kept",
    [([0.25] * 4, 0.5, [1, 1, 0, 0]), ([0.25, 0.5, 0.25], 0.5, [0, 1, 0]), ([0.5, 0.0, 0.5], 1.0, [1, 0, 1])],
)
def test_top_p_that_is_reached_exactly(probs, top_p, kept):
    """No more tokens are needed then; of equals at the edge the lowest ids stay."""
    np.testing.assert_array_equal(top_p_mask(jnp.array(probs), top_p), np.array(kept, bool))


# -- the distribution --------------------------------------------------------------------------------------------------


def token_probs_by_loop(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """One row, float64: top-k, temperature, softmax, top-p, renormalise."""
    if sampling.is_greedy:
        return np.eye(len(logits))[logits.argmax()]
    weights = np.exp((np.float64(logits) - logits.max()) / sampling.temperature)
    if sampling.top_k:
        weights = np.where(top_k_by_loop(logits, sampling.top_k), weights, 0)
    if sampling.top_p < 1:
        weights = np.where(top_p_by_loop(weights / weights.sum(), sampling.top_p), weights, 0)
    return weights / weights.sum()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(1.0), Sampling(0.3, top_k=7), Sampling(2.5, top_p=0.9), Sampling(0.8, top_k=9, top_p=0.7)],
    ids=str,
)
def test_token_probs_equals_a_loop(sampling):
    """The same tokens have probability 0; the others' probabilities are within 1e-6."""
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(0, 3, (32, 40)), rng.integers(-3, 4, (32, 40))]).astype(np.float32)
    logits[:, ::7] = -np.inf
    probs = np.asarray(token_probs_jit(jnp.asarray(logits), sampling))
    expected = np.stack([token_probs_by_loop(row, sampling) for row in logits])
    np.testing.assert_array_equal(probs > 0, expected > 0)
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-6)


def test_token_probs_at_the_edges():
    """Ties at the top-k edge all stay; a tiny top-p keeps the best token; greedy takes the lowest id of equals."""
    logits = jnp.array([[1.0, 3.0, 3.0, 0.0, -jnp.inf]])

    def of(*sampling) -> np.ndarray:
        return np.asarray(token_probs(logits, Sampling(*sampling)))[0]

    np.testing.assert_array_equal(of(0.0), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(of(1.0, 1), [0, 0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(of(1.0, 0, 1e-6), [0, 1, 0, 0, 0])
    np.testing.assert_allclose(of(1.0, 99), of(1.0), rtol=0, atol=0)
    assert of(1.0)[4] == 0 and of(0.5, 4, 0.999)[4] == 0
    np.testing.assert_allclose(of(2.0)[:4], np.exp([0.5, 1.5, 1.5, 0]) / np.exp([0.5, 1.5, 1.5, 0]).sum(), rtol=1e-6)


def test_suppressed_tokens_are_never_drawn():
    """As if their logits were -inf before every other step; ids past the vocabulary change nothing."""
    logits = jnp.array([[1.0, 3.0, 2.0, 0.0], [4.0, 0.0, 1.0, 2.0]])
    without = logits.at[:, jnp.array([1, 3])].set(-jnp.inf)
    for settings in ({}, {"temperature": 0.7}, {"temperature": 1.0, "top_k": 2}, {"temperature": 1.0, "top_p": 0.6}):
        suppressing = Sampling(**settings, suppress_tokens=(1, 3, 1000))
        for probs in (token_probs(logits, suppressing), token_probs_jit(logits, suppressing)):
            np.testing.assert_array_equal(probs, token_probs(without, Sampling(**settings)))
        uniforms = jnp.array([0.3, 0.9])
        assert (
            sample(logits, suppressing, uniforms).tolist() == sample(without, Sampling(**settings), uniforms).tolist()
        )


def test_token_probs_by_hand():
    """The token that crosses top-p stays; top-p comes after the temperature and after top-k."""

    def of(*sampling) -> np.ndarray:
        return np.asarray(token_probs(jnp.log(jnp.array([0.2, 0.5, 0.3])), Sampling(*sampling)))

    np.testing.assert_allclose(of(1.0, 0, 0.6), [0, 0.625, 0.375], atol=1e-6)
    np.testing.assert_allclose(of(0.5, 0, 0.6), [0, 1, 0], atol=1e-6, err_msg="0.25 of 0.38 is more than 0.6")
    np.testing.assert_allclose(of(1.0, 2, 0.6), [0, 1, 0], atol=1e-6, err_msg="0.5 of 0.8 is more than 0.6")
    assert token_probs(jnp.zeros(4, jnp.bfloat16), Sampling(1.0)).dtype == jnp.float32


@pytest.mark.parametrize("temperature", [0.99 * MIN_TEMPERATURE, 1e-17, 1e-40])
def test_tiny_temperature_is_greedy(temperature):
    for _, probs, logits in behind_a_head(Sampling(temperature)):
        np.testing.assert_array_equal(probs, token_probs(logits, Sampling(0.0)))


def test_lowest_sampling_temperature():
    """However the logits were rounded, probabilities add up to 1, and the most likely token is the most likely."""
    for best, probs, _ in behind_a_head(Sampling(MIN_TEMPERATURE)):
        np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-5)
        assert (jnp.take_along_axis(probs, best[:, None], axis=-1)[:, 0] > 0.3).all()


def behind_a_head(sampling: Sampling):
    """Argmax, probabilities and logits, compiled together as in a round: each may see other roundings of the logits."""

    def run(hidden, table):
        logits = softcap(hidden @ table.T, 30.0)
        return argmax(logits), token_probs(logits, sampling), logits

    run = jax.jit(run)
    for seed in range(10):
        hidden, table = (jax.random.normal(jax.random.key(seed + i), (rows, 256)) for i, rows in enumerate((5, 2048)))
        yield run(hidden, table / 10)


# -- a token -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 3.0, 2.0**-100], ids=["normalised", "sum 3", "sum 2^-100"])
def test_sample_from_equals_a_loop(factor):
    """Weights need not sum to 1.  Where the uniform meets a threshold exactly, the next token is the first to exceed it."""
    weights = factor * sixteenths(np.random.default_rng(0), 400, vocabulary=6)
    uniforms = (np.arange(400) % 32 / 32).astype(np.float32)
    expected = [first_above(row, uniform) for row, uniform in zip(np.float64(weights), uniforms, strict=True)]
    assert sample_from(jnp.asarray(weights), jnp.asarray(uniforms)).tolist() == expected


def test_sample_from_takes_tokens_in_order_of_id():
    """u = 0 takes the first token that is possible, u = 1 - 2^-23 the last."""
    weights = jnp.array([0, 2, 0, 5, 1, 0], jnp.float32)
    chosen = sample_from(jnp.tile(weights, (len(EDGES), 1)), jnp.asarray(EDGES, jnp.float32))
    np.testing.assert_array_equal(chosen, [1, 1, 1, 3, 4, 4])


def test_a_one_hot_distribution_gives_its_token_for_every_uniform():
    for token in range(6):
        one_hot = jnp.tile(jax.nn.one_hot(token, 6), (len(EDGES), 1))
        np.testing.assert_array_equal(sample_from(one_hot, jnp.asarray(EDGES, jnp.float32)), token)


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 300])
def test_sample_from_draws_from_the_distribution(vocabulary):
    check_draws(sample_from, vocabulary)


@pytest.mark.parametrize("vocabulary, thresholds", [(5, 600), (512, 600), (2048, 600), (20_000, 100)])
def test_sample_from_never_takes_an_impossible_token(vocabulary, thresholds):
    check_impossible_tokens(sample_from, vocabulary, thresholds)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, top_k=5)], ids=str)
def test_sample_is_a_token_of_token_probs(sampling):
    """Greedy takes the argmax, whatever the uniforms."""
    rng = np.random.default_rng(0)
    logits, uniforms = jnp.asarray(rng.normal(0, 3, (32, 12)), jnp.float32), jnp.asarray(rng.random(32), jnp.float32)
    tokens = sample(logits, sampling, uniforms).tolist()
    assert tokens == sample_from(token_probs(logits, sampling), uniforms).tolist()
    assert (tokens == sample(logits, sampling, 1 - uniforms).tolist()) == sampling.is_greedy
