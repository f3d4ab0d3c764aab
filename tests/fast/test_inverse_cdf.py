"""A token in two levels, first a block and then one of its tokens, against the reference's single running sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import fast
from decoding.fast.inverse_cdf import invert_cdf, sample_from
from decoding.oracle.law_check import GRID
from decoding.sampling import REFERENCE
from tests.draws import check_draws, check_impossible_tokens, first_above, sixteenths

GRAIN = 4  # grid points, of 2^23, within which rounding may decide


def test_it_is_the_kernel():
    assert fast.KERNELS.sample_from is sample_from


def test_where_nothing_is_rounded_it_equals_a_loop():
    """Sixteenths over 11 tokens, which do not divide into blocks; many uniforms meet a threshold exactly."""
    weights = sixteenths(np.random.default_rng(0), 400, vocabulary=11)
    uniforms = (np.arange(400) % 32 / 32).astype(np.float32)
    expected = [first_above(row, uniform) for row, uniform in zip(np.float64(weights), uniforms, strict=True)]
    assert sample_from(jnp.asarray(weights), jnp.asarray(uniforms)).tolist() == expected


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 300, 2048, 20_000])
def test_the_same_token_as_the_reference(vocabulary):
    """Unless a uniform k / 2^23 is within 4 grid points of a threshold, the running sum in float64 times 2^23.

    At 1000 random uniforms, and 6 grid points to either side of 100 thresholds.  Everywhere, too, k is within 4 grid points of
    the interval of the token that was drawn, for the twin and for the reference.
    """
    rng = np.random.default_rng(vocabulary)
    probs = np.asarray(jax.nn.softmax(jnp.asarray(rng.normal(0, 3, vocabulary), jnp.float32)))
    thresholds = np.cumsum(np.float64(probs)) * GRID / np.float64(probs).sum()
    beside = np.floor(rng.choice(thresholds, 100))[:, None] + [-6, 0, 6]
    k = np.append(rng.integers(0, GRID, 1000), np.clip(beside, 0, GRID - 1))
    uniforms = jnp.asarray(k / GRID, jnp.float32)
    tokens = {}
    for name, kernels in {"twin": fast.KERNELS, "reference": REFERENCE}.items():
        drawn = tokens[name] = np.asarray(jax.jit(jax.vmap(kernels.sample_from, in_axes=(None, 0)))(probs, uniforms))
        first, last = np.append(0, thresholds)[drawn], thresholds[drawn]
        assert (first - GRAIN <= k).all() and (k < last + GRAIN).all(), name
    is_certain = np.searchsorted(thresholds, k - GRAIN) == np.searchsorted(thresholds, k + GRAIN)
    np.testing.assert_array_equal(tokens["twin"][is_certain], tokens["reference"][is_certain])
    assert is_certain.mean() > 0.7


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 300])
def test_draws_from_the_distribution(vocabulary):
    """Also where blocks end."""
    check_draws(sample_from, vocabulary)


def in_one_block(probs, uniform):
    """A token of one block, for blocks of any size: Gemma's have 512."""
    return invert_cdf(probs, uniform * probs.sum())[0]


@pytest.mark.parametrize(
    ("sample_from", "vocabulary"),
    [
        (sample_from, 5),
        (sample_from, 512),
        (sample_from, 2048),
        (sample_from, 20_000),
        (in_one_block, 512),
        (in_one_block, 2048),
    ],
)
def test_never_takes_an_impossible_token(sample_from, vocabulary):
    check_impossible_tokens(sample_from, vocabulary)


def test_invert_cdf_by_hand():
    """The index, and how much of its weight is before the mark."""
    weights = jnp.tile(jnp.array([0, 2, 0, 5, 1, 0], jnp.float32), (5, 1))
    index, rest = invert_cdf(weights, jnp.array([0.0, 1.5, 2.0, 6.5, 9.0]))
    assert index.tolist() == [1, 1, 3, 3, 4]
    np.testing.assert_allclose(rest, [0, 1.5, 0, 4.5, 1], atol=1e-6, err_msg="a mark past the sum is the end of it")
