"""Logits processors: changes of the target's distribution that depend on the tokens before, exact under speculation.

A processor is a pure function (logits, counts) -> logits, where counts says how often each token is in the prompt and the text
before.  Verification scores every draft as if the drafts before it were text, so each position is processed with the counts
that it would have in autoregressive decoding.  Any function of this form will do; numbers that are fields of a registered
pytree, as below, may change without a compilation.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Processor = Callable[[jax.Array, jax.Array], jax.Array]
Number = Any  # a float, or an array in compiled code


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinP:
    """Keep the tokens at least `p` times as probable as the most probable one, at temperature 1.

    Source: Nguyen et al. 2024 (arXiv 2407.01082); transformers 5.22.2, `MinPLogitsWarper`, which comes after the temperature.
    """

    p: Number

    def __call__(self, logits: Float[Array, "*batch v"], counts: Int[Array, "*batch v"]) -> Float[Array, "*batch v"]:
        least = logits.max(axis=-1, keepdims=True) + jnp.log(jnp.float32(self.p))
        return jnp.where(logits >= least, logits, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Divide positive logits of tokens that were there before by `penalty`, and multiply negative ones.

    Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1; transformers 5.22.2, `RepetitionPenaltyLogitsProcessor`.
    """

    penalty: Number

    def __call__(self, logits: Float[Array, "*batch v"], counts: Int[Array, "*batch v"]) -> Float[Array, "*batch v"]:
        penalised = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return jnp.where(counts > 0, penalised, logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrequencyPenalty:
    """Subtract `frequency` for each time that a token was there before, and `presence` once.

    Source: the OpenAI API's frequency_penalty and presence_penalty, which count the text alone; here the prompt counts, too.
    """

    frequency: Number = 0.0
    presence: Number = 0.0

    def __call__(self, logits: Float[Array, "*batch v"], counts: Int[Array, "*batch v"]) -> Float[Array, "*batch v"]:
        return logits - self.frequency * counts - self.presence * (counts > 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitBias:
    """Add a number to the logits of some tokens.  Made by `logit_bias`."""

    ids: Any
    values: Any

    def __call__(self, logits: Float[Array, "*batch v"], counts: Int[Array, "*batch v"]) -> Float[Array, "*batch v"]:
        return logits.at[..., self.ids].add(self.values, mode="drop")


def logit_bias(bias: Mapping[int, float]) -> LogitBias:
    """The processor that adds bias[id] to the logit of each id."""
    return LogitBias(np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32))


def as_processors(processors: Any) -> tuple[Processor, ...]:
    """Errors: ValueError unless they are functions.  Plain functions are wrapped, so that all of them are pytrees."""
    given: tuple[Any, ...] = tuple(processors) if isinstance(processors, (tuple, list)) else (processors,)
    for processor in given:
        if not callable(processor):
            raise ValueError(f"processors: expected functions (logits, counts) -> logits, got {processor!r:.80}")
    return tuple(jax.tree_util.Partial(p) if jax.tree_util.all_leaves([p]) else p for p in given)


def process(
    logits: Float[Array, "b t v"],
    tokens: Int[Array, "b t-1"],
    counts: Int[Array, "b v"] | None,
    processors: Sequence[Processor],
) -> Float[Array, "b t v"]:
    """The logits at each position, processed with the tokens before it: `counts`, and `tokens` up to the position."""
    if counts is None:
        return logits
    earlier = jnp.cumsum(jax.nn.one_hot(tokens, logits.shape[-1], dtype=jnp.int32), axis=1)
    at_position = counts[:, None] + jnp.pad(earlier, ((0, 0), (1, 0), (0, 0)))
    return functools.reduce(lambda logits, processor: processor(logits, at_position), processors, logits)


def count_tokens(
    counts: Int[Array, "b v"] | None, tokens: Int[Array, "b t"], num_tokens: Int[Array, " b"]
) -> Int[Array, "b v"] | None:
    """The counts after the first `num_tokens` of each row's tokens."""
    if counts is None:
        return None
    is_text = jnp.arange(tokens.shape[1]) < num_tokens[:, None]
    return counts.at[jnp.arange(len(tokens))[:, None], tokens].add(is_text.astype(jnp.int32))
