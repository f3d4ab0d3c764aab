"""Functions that an assignment gives to its students: a tiny drafter and target, in NumPy.

A plan names them, because a function cannot be sent to another process as data: `Given("step", 7)` is the function `step` of
the tiny drafter with seed 7.  The file is a module of ours, and is read alone in a student's process.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Given(NamedTuple):
    """A function of this file, by name, and the seed of its numbers."""

    name: str
    seed: int


def function_of(name: str, seed: int) -> Callable[..., Any]:
    return getattr(Tiny(seed), name)


class Tiny:
    """A drafter of a few numbers.  It takes NumPy arrays and JAX's, and gives NumPy arrays."""

    vocabulary, width = 11, 6

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 41])
        v, d = self.vocabulary, self.width
        self.table = rng.normal(0, 1, (v, d)).astype(np.float32)
        self.of_embedding = rng.normal(0, 0.6, (d, d)).astype(np.float32)
        self.of_hidden = rng.normal(0, 0.8, (d, d)).astype(np.float32)
        self.head = rng.normal(0, 0.9, (d, v)).astype(np.float32)

    def embed(self, token: Any) -> np.ndarray:
        """int [b] -> float32 [b, d]"""
        return self.table[np.asarray(token)]

    def step(self, embedding: Any, hidden: Any) -> tuple[np.ndarray, np.ndarray]:
        """[b, d], [b, d] -> the vector for the head [b, d], and the drafter's hidden state [b, d]."""
        mixed = np.tanh(np.asarray(embedding) @ self.of_embedding + np.asarray(hidden) @ self.of_hidden)
        return mixed, (2 * mixed + 0.25).astype(np.float32)

    def probs(self, normed: Any) -> np.ndarray:
        """[b, d] -> the distribution of the next draft, float32 [b, v]."""
        logits = np.asarray(normed) @ self.head
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)

    def choose(self, probs: Any, uniforms: Any) -> np.ndarray:
        """[b, v], [b] -> tokens int32 [b]: where the running sum passes the uniform number times the total."""
        running = np.cumsum(np.asarray(probs), axis=-1)
        return (running <= np.asarray(uniforms)[:, None] * running[:, -1:]).sum(axis=-1).astype(np.int32)
