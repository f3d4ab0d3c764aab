"""How a token is drawn: by a loop, and counted over all uniform numbers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from decoding import Sampling
from decoding.oracle.law_check import GRID, count_until
from decoding.sampling import token_probs

EDGES = np.array([0, 1, 2, GRID // 2, GRID - 2, GRID - 1]) / GRID  # of `jax.random.uniform`: the first, the last, ..

SampleFrom = Callable[[jax.Array, jax.Array], jax.Array]
token_probs_jit = jax.jit(token_probs, static_argnums=1)


def sixteenths(rng: np.random.Generator, *shape: int, vocabulary: int) -> np.ndarray:
    """Random distributions whose probabilities, sums and products with uniforms of few bits are exact in float32."""
    return rng.multinomial(16, np.ones(vocabulary) / vocabulary, shape).astype(np.float32) / 16


def first_above(weights: np.ndarray, uniform: float) -> int:
    """The token at which the running sum exceeds the uniform's share of the whole sum."""
    running = 0.0
    for token, weight in enumerate(weights):
        running += weight
        if running > uniform * weights.sum():
            return token
    raise AssertionError("a sum of 0")


def drawn_probs(sample_from: SampleFrom, probs: np.ndarray) -> np.ndarray:
    """The distribution, float64 [.., v], that `sample_from` really draws from, counted over the uniforms."""
    rows, tokens = jnp.asarray(probs)[..., None, :], np.arange(probs.shape[-1])
    draw = _draw(sample_from)
    at_most = count_until(lambda uniforms: np.asarray(draw(rows, jnp.asarray(uniforms))) <= tokens, probs.shape)
    return np.diff(at_most, axis=-1, prepend=0) / GRID


@functools.cache
def _draw(sample_from: SampleFrom) -> SampleFrom:
    return jax.jit(
        lambda rows, uniforms: sample_from(jnp.broadcast_to(rows, (*uniforms.shape, rows.shape[-1])), uniforms)
    )


def check_draws(sample_from: SampleFrom, vocabulary: int) -> None:
    """Each token's probability, to the grain of the uniforms."""
    logits = np.random.default_rng(vocabulary).normal(0, 1, vocabulary).astype(np.float32)
    probs = np.asarray(token_probs_jit(jnp.asarray(logits), Sampling(1.0)))
    expected = np.float64(probs) / np.float64(probs).sum()
    np.testing.assert_allclose(drawn_probs(sample_from, probs), expected, rtol=0, atol=4 / GRID)


def check_impossible_tokens(sample_from: SampleFrom, vocabulary: int, thresholds: int = 600) -> None:
    """None is drawn at or beside the thresholds of distributions that are 0 on seven tokens of eight, nor at the edges.

    In float32 a parallel running sum may rise by a rounding error at a token of probability 0.
    """
    draw = jax.jit(jax.vmap(sample_from, in_axes=(None, 0)))
    for seed in range(4):
        logits = np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)
        probs = np.asarray(token_probs_jit(jnp.asarray(logits), Sampling(1.0, top_k=max(2, vocabulary // 8))))
        sums = np.cumsum(np.float64(probs))[probs > 0]
        near = np.floor(sums / sums[-1] * GRID)[:, None] + np.arange(-2, 3)
        uniforms = np.append(np.clip(near, 0, GRID - 1).reshape(-1)[: 5 * thresholds] / GRID, EDGES).astype(np.float32)
        drawn = np.asarray(draw(probs, jnp.asarray(np.resize(uniforms, 5 * thresholds + len(EDGES)))))
        assert (probs[drawn] > 0).all()
