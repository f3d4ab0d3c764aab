"""From logits to a law: top-k, temperature, then top-p.  Greedy is the one-hot law, not a special case downstream."""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4.functional import argmax

COLDEST = 1e-30  # what is colder does not fit into float32


class Sampling(NamedTuple):
    """How to choose from a law.  Hashable: jitted functions take it as a static argument.

    temperature: 0 is greedy; 1 the model's own law.   top_k: keep the k most likely tokens; 0 keeps all.
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
        if checked.temperature != 0 and not COLDEST <= checked.temperature < float("inf"):
            raise ValueError(
                f"temperature: expected a number from {COLDEST:g} up, or 0 (greedy), got {checked.temperature:g}"
            )
        if not 0 < checked.top_p <= 1:
            raise ValueError(f"top_p: expected a share of probability in (0, 1], got {checked.top_p:g}")
        if checked.top_k < 0:
            raise ValueError(f"top_k: expected a number of tokens, or 0 for all, got {checked.top_k}")
        return checked


def law(logits: Float[Array, "*batch v"], sampling: Sampling) -> Float[Array, "*batch v"]:
    """The probabilities that a token is drawn from, float32, summing to 1.

    Greedy puts everything on the argmax (the lowest id among equals).  Tokens cut by top-k or top-p, and those whose logit
    is -inf, have probability exactly 0; what remains is renormalised.
    Source: the edges of transformers 5.22.2's logits warpers (ties at the top-k edge are all kept).  Their order is
    temperature, top-k, top-p; the first two may change places.
    """
    if sampling.temperature == 0:
        return jax.nn.one_hot(argmax(logits), logits.shape[-1], dtype=jnp.float32)
    logits = logits.astype(jnp.float32)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    # The largest comes off before the division.  After it, at a low temperature, compiled code may round the quotient and the
    # largest of them differently, by more than an exponential bears (NaN from 1e-9 down with jax 0.10.2 on CPU).
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_p < 1:
        order = jnp.argsort(-logits, axis=-1)
        probs = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        cut = jnp.put_along_axis(
            jnp.zeros(logits.shape, bool), order, mass_before >= sampling.top_p, axis=-1, inplace=False
        )
        logits = jnp.where(cut, -jnp.inf, logits)
    return jax.nn.softmax(logits, axis=-1)


def choose(probs: Float[Array, "*batch v"], uniforms: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    """The token at which the running sum of `probs` passes `uniforms` (in [0, 1)).  Weights need not sum to 1.

    A token of probability 0 is never chosen, and a one-hot law chooses its token for every uniform.
    """
    # A parallel cumsum rounds each sum in its own way, so at a token of probability 0 it may still rise: hide those.
    running = jnp.where(probs > 0, jnp.cumsum(probs, axis=-1), 0)
    total = running.max(axis=-1, keepdims=True)
    return jnp.argmax(running > uniforms[..., None] * total, axis=-1).astype(jnp.int32)


def draw(
    logits: Float[Array, "*batch v"], sampling: Sampling, uniforms: Float[Array, "*batch"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch v"]]:
    """A token from the law of `logits`, and that law."""
    probs = law(logits, sampling)
    return (argmax(logits) if sampling.temperature == 0 else choose(probs, uniforms)), probs
