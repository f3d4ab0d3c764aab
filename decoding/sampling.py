"""From logits to a probability distribution over tokens (top-k, temperature, top-p), and from there to a token.

Greedy decoding is the one-hot distribution, not a special case downstream.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma4.functional import argmax

MIN_TEMPERATURE = 1e-5  # below it the choice between two close logits would be up to float32's rounding
MIN_TOP_P = 1e-30  # less may not fit into float32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings.  Hashable: jitted functions take them as a static argument.

    temperature: 0 is greedy, and so is everything below MIN_TEMPERATURE; 1 leaves the model's distribution as it is.
    top_k:       keep the k most likely tokens; 0 keeps all.
    top_p:       keep the fewest tokens whose probabilities add up to top_p; 1.0 keeps all.
    Errors:      ValueError that names the setting out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        try:
            values = float(self.temperature), operator.index(self.top_k), float(self.top_p)
        except (TypeError, ValueError):
            raise ValueError(
                f"sampling: expected numbers, for top_k a whole number, got temperature={self.temperature!r:.40}, "
                f"top_k={self.top_k!r:.40}, top_p={self.top_p!r:.40}"
            ) from None
        for name, value in zip(("temperature", "top_k", "top_p"), values, strict=True):
            object.__setattr__(self, name, value)  # in Python's own numbers
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number from 0 (greedy) up, got {self.temperature:g}")
        if not MIN_TOP_P <= self.top_p <= 1:
            raise ValueError(f"top_p: expected a probability from {MIN_TOP_P:g} to 1, got {self.top_p:g}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected a number of tokens, or 0 for all, got {self.top_k}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE


class Kernels(NamedTuple):
    """The functions that go over the whole vocabulary.  `REFERENCE` has the plain forms, `decoding/fast` others."""

    argmax: Callable[[jax.Array], jax.Array]
    top_k_mask: Callable[[jax.Array, int], jax.Array]
    top_p_mask: Callable[[jax.Array, float], jax.Array]
    sample_from: Callable[[jax.Array, jax.Array], jax.Array]


def top_k_mask(logits: Float[Array, "*batch v"], top_k: int) -> Bool[Array, "*batch v"]:
    """The `top_k` highest logits, and all that equal the lowest of them."""
    highest, _ = jax.lax.top_k(logits, top_k)
    return logits >= highest[..., -1:]


def top_p_mask(probs: Float[Array, "*batch v"], top_p: float) -> Bool[Array, "*batch v"]:
    """Nucleus sampling: the fewest most likely tokens whose probabilities add up to `top_p`; lower ids first among equals.

    Source: Holtzman et al. 2019 (arXiv 1904.09751), section 3.1.
    """
    order = jnp.argsort(-probs, axis=-1, stable=True)
    descending = jnp.take_along_axis(probs, order, axis=-1)
    mass_before = jnp.cumsum(descending, axis=-1) - descending
    rank = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(mass_before < top_p, rank, axis=-1)


@jax.jit
def sample_from(probs: Float[Array, "*batch v"], uniforms: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    """Inverse CDF: the token at which the running sum of `probs` exceeds `uniforms` (in [0, 1)).

    Weights need not sum to 1.  A token of probability 0 is never chosen; a one-hot distribution chooses its token for every
    uniform.  Exact to the resolution of a float32 uniform, about 2^-23 for each token: negligible for a small vocabulary; with
    262,144 tokens the distribution is off by half a percent of total variation, in tokens of a millionth each.
    """
    # Where a probability is 0, a parallel cumsum may still rise by its rounding.
    running = jnp.where(probs > 0, jnp.cumsum(probs, axis=-1), 0)
    total = running.max(axis=-1)
    mark = jnp.minimum(uniforms * total, jnp.nextafter(total, jnp.zeros_like(total)))
    return jnp.argmax(running > mark[..., None], axis=-1).astype(jnp.int32)


REFERENCE = Kernels(argmax, top_k_mask, top_p_mask, sample_from)


def token_probs(
    logits: Float[Array, "*batch v"], sampling: Sampling, kernels: Kernels = REFERENCE
) -> Float[Array, "*batch v"]:
    """The distribution that a token is drawn from, float32, summing to 1.

    Greedy puts everything on the argmax (the lowest id among equals).  Tokens outside top-k or top-p, and those whose logit
    is -inf, have probability exactly 0; the rest is renormalised.
    Source: transformers 5.22.2's logits warpers (logits equal to the k-th highest are all kept).  Their order is temperature,
    top-k, top-p; the first two commute.
    """
    if sampling.is_greedy:
        return jax.nn.one_hot(kernels.argmax(logits), logits.shape[-1], dtype=jnp.float32)
    logits = logits.astype(jnp.float32)
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = jnp.where(kernels.top_k_mask(logits, sampling.top_k), logits, -jnp.inf)
    # Subtract the largest before the division.  At a low temperature, compiled code may round the quotient and the largest
    # quotient differently, by more than an exponential can bear.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_p < 1:
        mask = kernels.top_p_mask(jax.nn.softmax(logits, axis=-1), sampling.top_p)
        logits = jnp.where(mask, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def sample(
    logits: Float[Array, "*batch v"],
    sampling: Sampling,
    uniforms: Float[Array, "*batch"],
    kernels: Kernels = REFERENCE,
) -> Int[Array, "*batch"]:
    """A token from the distribution that `logits` and `sampling` define."""
    if sampling.is_greedy:
        return kernels.argmax(logits)
    return kernels.sample_from(token_probs(logits, sampling, kernels), uniforms)
