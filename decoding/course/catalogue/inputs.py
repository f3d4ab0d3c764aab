"""Inputs that several assignments share.

Distributions are multiples of 1/64 and uniform numbers odd multiples of 2^-12.  Sums, products and comparisons of these are
exact in float32, in every order, and none lies on the edge: a right answer is right however it is computed.
"""

from typing import Any

import numpy as np

PARTS, GRID = 64, 2**11


def distributions(
    rng: np.random.Generator, shape: tuple[int, ...], vocabulary: int, sharpness: float = 1.0
) -> np.ndarray:
    """float32 [*shape, v], multiples of 1/64 with some zeros."""
    weights = rng.dirichlet(np.full(vocabulary, sharpness), size=shape)
    return (rng.multinomial(PARTS, weights) / PARTS).astype(np.float32)


def uniforms(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in (0, 1), odd multiples of 2^-12."""
    return ((2 * rng.integers(0, GRID, shape) + 1) / (2 * GRID)).astype(np.float32)


def drawn(rng: np.random.Generator, probs: np.ndarray) -> np.ndarray:
    """A token from each distribution, int32."""
    flat = probs.reshape(-1, probs.shape[-1]).astype(np.float64)
    tokens = [rng.choice(len(row), p=row / row.sum()) for row in flat]
    return np.array(tokens, np.int32).reshape(probs.shape[:-1])


def one_hot(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    return np.eye(vocabulary, dtype=np.float32)[tokens]


def int32(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def float32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def bools(values: Any) -> np.ndarray:
    return np.array(values, bool)
