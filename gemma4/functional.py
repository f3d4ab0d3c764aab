"""The formulas of Gemma 4: arrays in, arrays out, no weights and no state.  Read this file first.

Axis letters, the same in einsum strings and prose throughout the project:
b batch · t query/time · s key/slot · n query head · k KV head · g query heads per KV head · h head dim · d model width ·
f MLP width · p width of the per-layer embeddings (PLE) · v vocabulary · e expert · c chosen expert or candidate token ·
a anchor (in training).  Longer names, such as `pairs` or `backbone`, explain themselves where they occur.

Norms, RoPE angles and the softmax are computed in float32, whatever the dtype of the weights.  Results are rounded where
transformers 5.22.2 (`modeling_gemma4.py`) rounds them.  When XLA compiles for bfloat16, it keeps more bits between fused
operations unless `xla_allow_excess_precision` is off; `tests/parity` turns it off and compares bit for bit.

Each formula has one plain form here.  `gemma4/fast` has forms that give the same numbers sooner on some machine.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Shaped


def rms_norm(x: Float[Array, "*batch d"], weight: Float[Array, " d"] | None, eps: float) -> Float[Array, "*batch d"]:
    """RMSNorm: x / sqrt(mean(x²) + eps) * weight, rounded once, at the end.

    The weight multiplies as it is (Gemma 1 to 3 multiply by 1 + weight).  None means no weight (V, router).

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4; `Gemma4RMSNorm` in transformers 5.22.2.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    if weight is not None:
        normed = normed * weight.astype(jnp.float32)
    return normed.astype(x.dtype)


def inverse_frequencies(head_dim: int, theta: float, rotary_factor: float = 1.0) -> np.ndarray:
    """RoPE frequencies: radians per token of each of the head_dim/2 pairs, float32 [head_dim/2].

    Proportional (partial) RoPE, in full layers: only the first `rotary_factor` of the pairs rotate, and the others have
    frequency 0.  The exponent still divides by the whole head_dim, and pairs still span the whole head.  Computed in float64
    and rounded once, because an error in a frequency grows with the position.
    Source: `_compute_proportional_rope_parameters`, transformers 5.22.2.
    """
    pairs = head_dim // 2
    rotating = int(rotary_factor * head_dim // 2)
    frequencies = theta ** (-2.0 * np.arange(pairs, dtype=np.float64) / head_dim)
    return np.where(np.arange(pairs) < rotating, frequencies, 0.0).astype(np.float32)


def rope_cos_sin(
    positions: Int[Array, "b t"], head_dim: int, theta: float, rotary_factor: float = 1.0
) -> tuple[Float[Array, "b t pairs"], Float[Array, "b t pairs"]]:
    """cos and sin of position x frequency, float32."""
    frequencies = inverse_frequencies(head_dim, theta, rotary_factor)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "b t heads h"], cos_sin: tuple[Float[Array, "b t pairs"], Float[Array, "b t pairs"]]
) -> Float[Array, "b t heads h"]:
    """RoPE: rotate each pair (x[i], x[i + h/2]) by its angle.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34, with split-half pairs as in transformers.
    """
    cos, sin = (part[:, :, None, :].astype(x.dtype) for part in cos_sin)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention_mask(
    query_positions: Int[Array, "b t"], key_positions: Int[Array, "b s"], window: int | None
) -> Bool[Array, "b t s"]:
    """Causal mask, or with a `window` the sliding one: a query sees itself and earlier keys, at most `window` keys in all.

    Positions are absolute.  A negative key position means that the slot is empty.
    """
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    mask = (key >= 0) & (key <= query)
    return mask if window is None else mask & (key > query - window)


def attention_scores(query: Float[Array, "b k g t h"], key: Float[Array, "b k s h"]) -> Float[Array, "b k g t s"]:
    """The dot product of each query with each key of its KV head."""
    return jnp.einsum("bkgth,bksh->bkgts", query, key)


def attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    mask: Bool[Array, "b t s"],
    scores_of: Callable[[jax.Array, jax.Array], jax.Array] = attention_scores,
) -> Float[Array, "b t n h"]:
    """Grouped-query attention (GQA) with scale 1.0: Gemma 4 normalises q and k instead of dividing by sqrt(h).

    Query head i reads KV head i // (n/k).  Slots that no query sees may hold anything, NaN included: their scores are
    replaced before the softmax, and their values before the sum (0 x NaN would still be NaN).
    The result of a query that sees nothing is finite and has no meaning.
    scores_of: computes the scores; `gemma4/fast` passes another form of the same numbers.
    Rounding: scores to the dtype of the query, the softmax in float32, its result to the dtype of the values, as in
    transformers' eager attention.
    """
    grouped = rearrange(query, "b t (k g) h -> b k g t h", k=key.shape[1])  # GQA: g query heads share a KV head
    scores = scores_of(grouped, key).astype(jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    is_seen = mask.any(axis=1)[:, None, :, None]  # [b, 1, s, 1]: the slots that some query sees
    out = jnp.einsum("bkgts,bksh->bkgth", probs, jnp.where(is_seen, value, 0))
    return rearrange(out, "b k g t h -> b t (k g) h")


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU in its tanh approximation (`gelu_pytorch_tanh`); in float32, rounded once, as torch does."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def scaled(x: Float[Array, "*shape"], factor: float) -> Float[Array, "*shape"]:
    """x * factor, rounded once, as torch does.  JAX's own product rounds the factor to the dtype of x first."""
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def softcap(logits: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """cap * tanh(logits / cap): bounds logits to ±cap and keeps their order.  None: no cap."""
    return logits if cap is None else jnp.tanh(logits / cap) * cap


def argmax(scores: Float[Array, "*batch v"]) -> Int[Array, "*batch"]:
    """The lowest index among the highest scores, int32."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def select_position(values: Shaped[Array, "b t *rest"], index: Int[Array, " b"]) -> Shaped[Array, "b *rest"]:
    """values[i, index[i]] for each batch row i."""
    return jnp.take_along_axis(values, index.reshape(-1, *[1] * (values.ndim - 1)), axis=1)[:, 0]
