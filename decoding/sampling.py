"""From logits to a law, a probability distribution over tokens: top-k, temperature, then top-p.

Greedy is the one-hot law, not a special case downstream.
"""

import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from decoding.cuts import among_top_k, in_nucleus
from gemma4.functional import argmax

COLDEST = 1e-5  # below, float32 does not tell logits apart well enough: which of two is drawn would be up to rounding
LEAST_MASS = 1e-30  # of top_p: what is less may not fit into float32


class Sampling(NamedTuple):
    """How to choose from a law.  Hashable: jitted functions take it as a static argument.

    temperature: 0 is greedy, and so is all below COLDEST; 1 is the model's own law.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the fewest tokens whose mass reaches top_p; 1.0 keeps all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> "Sampling":
        """The same in Python's numbers.  Errors: ValueError that names the setting out of range."""
        try:
            checked = Sampling(float(self.temperature), operator.index(self.top_k), float(self.top_p))
        except (TypeError, ValueError):
            raise ValueError(f"sampling: expected numbers, for top_k a whole one, got {self}") from None
        if not 0 <= checked.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number from 0 (greedy) up, got {checked.temperature:g}")
        if not LEAST_MASS <= checked.top_p <= 1:
            raise ValueError(f"top_p: expected a share of probability from {LEAST_MASS:g} to 1, got {checked.top_p:g}")
        if checked.top_k < 0:
            raise ValueError(f"top_k: expected a number of tokens, or 0 for all, got {checked.top_k}")
        return checked

    @property
    def is_greedy(self) -> bool:
        return self.temperature < COLDEST


def law(logits: Float[Array, "*batch v"], sampling: Sampling) -> Float[Array, "*batch v"]:
    """The probabilities that a token is drawn from, float32, summing to 1.

    Greedy puts everything on the argmax (the lowest id among equals).  Tokens cut by top-k or top-p, and those whose logit
    is -inf, have probability exactly 0; what remains is renormalised.
    Source: the edges of transformers 5.22.2's logits warpers (ties at the top-k edge are all kept).  Their order is
    temperature, top-k, top-p; the first two may change places.
    """
    if sampling.is_greedy:
        return jax.nn.one_hot(argmax(logits), logits.shape[-1], dtype=jnp.float32)
    logits = logits.astype(jnp.float32)
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = jnp.where(among_top_k(logits, sampling.top_k), logits, -jnp.inf)
    # The largest comes off before the division.  After it, at a low temperature, compiled code may round the quotient and the
    # largest of them differently, by more than an exponential bears.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_p < 1:
        logits = jnp.where(in_nucleus(jax.nn.softmax(logits, axis=-1), sampling.top_p), logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


# Jitted for who calls it by itself: operation by operation twenty rows of four take 4 ms, not 0.05.
@jax.jit
def choose(probs: Float[Array, "*batch v"], uniforms: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    """The token at which the running sum of `probs` passes `uniforms` (in [0, 1)).  Weights need not sum to 1.

    A token of probability 0 is never chosen, and a one-hot law chooses its token for every uniform.
    Exact to the grain of a float32 uniform, about 2^-23 for each token.  That is nothing for a small vocabulary; with 262,144
    tokens the law that is drawn from is half a percent of total variation off, in tokens of a millionth each.
    """
    # First a block of tokens, then one of its tokens: a running sum over all of Gemma's takes a CPU thirty times as long.
    size = max(1, math.isqrt(probs.shape[-1]))
    padding = [(0, 0)] * (probs.ndim - 1) + [(0, -probs.shape[-1] % size)]
    blocks = rearrange(jnp.pad(probs, padding), "... (blocks tokens) -> ... blocks tokens", tokens=size)
    masses = blocks.sum(axis=-1)
    block, rest = pass_mark(masses, uniforms * masses.sum(axis=-1))
    token, _ = pass_mark(jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :], rest)
    return block * size + token


def pass_mark(
    weights: Float[Array, "*batch n"], mark: Float[Array, "*batch"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The index at which the running sum of `weights` passes `mark`, and how much of that weight lies before the mark."""
    # A parallel cumsum rounds each sum in its own way, so at a weight of 0 it may still rise: hide those.
    running = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    mark = jnp.clip(mark, 0, jnp.nextafter(running.max(axis=-1), jnp.float32(0)))  # whatever rounding made of it
    index = jnp.argmax(running > mark[..., None], axis=-1).astype(jnp.int32)
    of_index = lambda values: jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]
    return index, mark - (of_index(running) - of_index(weights))


def draw(
    logits: Float[Array, "*batch v"], sampling: Sampling, uniforms: Float[Array, "*batch"]
) -> Int[Array, "*batch"]:
    """A token from the law of `logits`."""
    return argmax(logits) if sampling.is_greedy else choose(law(logits, sampling), uniforms)
