"""One place: which tokens are listed, and what a draw records."""

import jax.numpy as jnp
import numpy as np

from decoding.stages.accept import residual
from decoding.trace.place import LISTED, draw, exact, place, residual_of


def distributions(seed=0, size=50):
    random = np.random.default_rng(seed)
    return [(w / w.sum()).astype(np.float32) for w in random.exponential(size=(2, size)) ** 3]


def test_the_largest_of_both_are_listed_in_the_order_of_ids():
    p, q = distributions()
    tokens = [row[0] for row in place(p, q, also=[49])["tokens"]]
    assert tokens == sorted(set(np.argsort(-p)[:LISTED]) | set(np.argsort(-q)[:LISTED]) | {49})


def test_tokens_of_probability_zero_are_not_listed():
    p = np.zeros(20, np.float32)
    p[[3, 7]] = 0.25, 0.75
    assert [row[:3] for row in place(p, np.zeros_like(p))["tokens"]] == [[3, 0.25, 0], [7, 0.75, 0]]


def test_the_residual_is_that_of_the_program():
    p, q = distributions()
    assert np.array_equal(residual_of(p, q), residual(jnp.asarray(p), jnp.asarray(q)))
    assert np.array_equal(residual_of(p, p), p)  # nothing is left over anywhere: p itself
    weighted = residual_of(p, q, 0.25)
    assert np.allclose(weighted, np.maximum(p / 4 - q, 0)) and weighted.any()


def test_a_draw_has_the_sums_on_both_sides():
    weights = np.array([0.25, 0, 0.5, 1.25], np.float32)
    assert draw(weights, 2, 0.3) == {"token": 2, "u": 0.3, "before": 0.25, "after": 0.75, "sum": 2.0}


def test_numbers_are_read_back_to_the_bit():
    for value in np.random.default_rng(1).random(200, np.float32):
        assert np.float32(exact(value)) == value and len(str(exact(value))) <= 13
