"""From logits to a probability distribution over tokens (top-k, temperature, top-p), and from there to a token.

Greedy decoding is the one-hot distribution; where code branches on `is_greedy`, it takes a shortcut to the same result.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma4.functional import argmax

MIN_TEMPERATURE = 1e-5  # below it the choice between two close logits would be up to float32's rounding
MIN_TOP_P = 1e-30  # less may not fit into float32
NO_TOKEN = 2**31 - 1  # an id that no vocabulary has


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings, validated when they are made.

    temperature:     0 is greedy, and so is everything below MIN_TEMPERATURE; 1 leaves the model's distribution as it is.
    top_k:           keep the k most likely tokens; 0 keeps all.
    top_p:           keep the fewest tokens whose probabilities add up to top_p; 1.0 keeps all.
    suppress_tokens: ids that are never drawn, as in a released `generation_config.json`.
    Errors:          ValueError that names the setting out of range.

    A pytree: the numbers are arguments of compiled code, so that other values need no compilation.  Only the flags `is_greedy`,
    `has_top_k` and `has_top_p` are static: they decide which steps of `token_probs` are compiled.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    suppress_tokens: Sequence[int] = ()  # kept as a tuple
    is_greedy: bool = dataclasses.field(init=False, repr=False, compare=False)
    has_top_k: bool = dataclasses.field(init=False, repr=False, compare=False)
    has_top_p: bool = dataclasses.field(init=False, repr=False, compare=False)

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
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k: expected a number of tokens, or 0 for all, got {self.top_k}")
        object.__setattr__(self, "suppress_tokens", token_ids("suppress_tokens", self.suppress_tokens))
        is_greedy = self.temperature < MIN_TEMPERATURE  # then nothing is cut off, and all such settings are one program
        flags = is_greedy, self.top_k > 0 and not is_greedy, self.top_p < 1 and not is_greedy
        for name, value in zip(STATIC, flags, strict=True):
            object.__setattr__(self, name, value)

    def tree_flatten(self) -> tuple[tuple, tuple[bool, ...]]:
        arguments = self.temperature, self.top_k, self.top_p, padded_ids(self.suppress_tokens)
        return arguments, tuple(getattr(self, name) for name in STATIC)

    @classmethod
    def tree_unflatten(cls, static: tuple[bool, ...], arguments: tuple) -> "Sampling":
        """Without validation: in compiled code the numbers are not known."""
        sampling = object.__new__(cls)
        for name, value in zip((*ARGUMENTS, *STATIC), (*arguments, *static), strict=True):
            object.__setattr__(sampling, name, value)
        return sampling


ARGUMENTS = ("temperature", "top_k", "top_p", "suppress_tokens")
STATIC = ("is_greedy", "has_top_k", "has_top_p")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Errors: ValueError that names the setting, unless these are token ids."""
    try:
        ids = tuple(map(operator.index, value))
    except TypeError:
        raise ValueError(f"{name}: expected token ids, such as (1, 106), got {value!r:.80}") from None
    if not all(0 <= i < NO_TOKEN for i in ids):
        raise ValueError(f"{name}: expected token ids from 0 to {NO_TOKEN - 1}, got {ids!r:.80}")
    return ids


def padded_ids(ids: Any, least: int = 0) -> Any:
    """The ids as an int32 array, padded with NO_TOKEN to a multiple of 8 (at least `least`), so that a few more need no
    compilation.  An array, as in compiled code, is returned as it is.
    """
    if not isinstance(ids, tuple):
        return ids
    size = max(least, -(-len(ids) // 8) * 8)
    return np.array([*ids, *[NO_TOKEN] * (size - len(ids))], np.int32)


class Kernels(NamedTuple):
    """The functions that go over the whole vocabulary.  `REFERENCE` has the plain forms, `decoding/fast` others."""

    argmax: Callable[[jax.Array], jax.Array]
    top_k_mask: Callable[[jax.Array, int | jax.Array], jax.Array]
    top_p_mask: Callable[[jax.Array, float | jax.Array], jax.Array]
    sample_from: Callable[[jax.Array, jax.Array], jax.Array]


def top_k_mask(logits: Float[Array, "*batch v"], top_k: int | Int[Array, ""]) -> Bool[Array, "*batch v"]:
    """The `top_k` highest logits (1 or more; all if there are fewer), and all that equal the lowest of them."""
    ascending = jnp.sort(logits, axis=-1)
    lowest = jnp.take(ascending, jnp.maximum(logits.shape[-1] - top_k, 0), axis=-1)
    return logits >= lowest[..., None]


def top_p_mask(probs: Float[Array, "*batch v"], top_p: float | Float[Array, ""]) -> Bool[Array, "*batch v"]:
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
    """Inverse CDF: the first token at which the running sum of `probs` exceeds `uniforms` (in [0, 1)) times their total.

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


def suppress(logits: Float[Array, "*batch v"], sampling: Sampling) -> Float[Array, "*batch v"]:
    """Logits of the tokens that are never drawn become -inf."""
    ids = padded_ids(sampling.suppress_tokens)
    return logits.at[..., ids].set(-jnp.inf, mode="drop") if len(ids) else logits


def token_probs(
    logits: Float[Array, "*batch v"], sampling: Sampling, kernels: Kernels = REFERENCE
) -> Float[Array, "*batch v"]:
    """The distribution that a token is drawn from, float32, summing to 1.

    Greedy puts everything on the argmax (the lowest id among equals).  Suppressed tokens, those outside top-k or top-p, and
    those whose logit is -inf, have probability exactly 0; the rest is renormalised.
    Source: transformers 5.22.2's logits processors (logits equal to the k-th highest are all kept).  Their order is
    suppressed tokens, temperature, top-k, top-p; temperature and top-k commute.
    """
    logits = suppress(logits, sampling)
    if sampling.is_greedy:
        return jax.nn.one_hot(kernels.argmax(logits), logits.shape[-1], dtype=jnp.float32)
    logits = logits.astype(jnp.float32)
    if sampling.has_top_k:
        logits = jnp.where(kernels.top_k_mask(logits, sampling.top_k), logits, -jnp.inf)
    # Subtract the largest before the division.  At a low temperature, compiled code may round the quotient and the largest
    # quotient differently, by more than an exponential can bear.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.has_top_p:
        mask = kernels.top_p_mask(jax.nn.softmax(logits, axis=-1), sampling.top_p)
        logits = jnp.where(mask, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def token_logprobs(logits: Float[Array, "b t v"], tokens: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """The log-probability of each token under the target alone: before processors, temperature, top-k and top-p."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def sample(
    logits: Float[Array, "*batch v"],
    sampling: Sampling,
    uniforms: Float[Array, "*batch"],
    kernels: Kernels = REFERENCE,
) -> Int[Array, "*batch"]:
    """A token from the distribution that `logits` and `sampling` define."""
    if sampling.is_greedy:
        return kernels.argmax(suppress(logits, sampling))
    return kernels.sample_from(token_probs(logits, sampling, kernels), uniforms)


# -- random numbers ----------------------------------------------------------------------------------------------------


def has_key_per_row(key: jax.Array) -> bool:
    """Whether each row draws from a key of its own, whatever the other rows do.  Else one key is for all."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def split_key(key: jax.Array, count: int = 2) -> jax.Array:
    """`jax.random.split`, of each row's key if each has its own: [count, b]."""
    if has_key_per_row(key):
        return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(key)
    return jax.random.split(key, count)


def draw_uniforms(key: jax.Array, shape: tuple[int, ...], row_axis: int = 0) -> Float[Array, "..."]:
    """`jax.random.uniform`.  Rows that have keys of their own get the numbers of a batch of one with that key."""
    if has_key_per_row(key):
        of_row = shape[:row_axis] + shape[row_axis + 1 :]
        return jax.vmap(lambda key: jax.random.uniform(key, of_row), out_axes=row_axis)(key)
    return jax.random.uniform(key, shape)
