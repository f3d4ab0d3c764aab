"""The formulas of Gemma 4: arrays in, arrays out, no weights and no state.  Read this file first.

Axis letters, the same in einsum strings and prose throughout the project:
b batch · t query/time · s key/slot · n query head · k KV head · g query heads per KV head · h head dim ·
d model width · f MLP width · p per-layer width · v vocabulary · e expert · c chosen expert or cluster · m member of a cluster.

Norms, angles and softmax are computed in float32 whatever the dtype of the weights, and rounded back where
transformers 5.22.2 (`modeling_gemma4.py`) rounds.  Compiled for bfloat16, XLA keeps more bits than that between operations it
fuses, unless `xla_allow_excess_precision` is off; `tests/parity` compares bit for bit with it off.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

HANDFUL, FEW_ROWS = 8, 64  # queries that share a KV head


def rms_norm(x: Float[Array, "*batch d"], weight: Float[Array, " d"] | None, eps: float) -> Float[Array, "*batch d"]:
    """x / sqrt(mean(x²) + eps) * weight, rounded once, at the end.

    The weight multiplies as it is (Gemma 1-3 used 1 + weight); None means no weight (V, router).

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4; `Gemma4RMSNorm` in transformers 5.22.2.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    if weight is not None:
        normed = normed * weight.astype(jnp.float32)
    return normed.astype(x.dtype)


def inverse_frequencies(head_dim: int, theta: float, rotary_factor: float = 1.0) -> np.ndarray:
    """Radians per token of each of the head_dim/2 frequency pairs, float32 [head_dim/2].

    Proportional RoPE: only the first `rotary_factor` of the pairs turn, the rest stand still (frequency 0); the exponent
    still divides by the whole head_dim, and pairs still span the whole head.  Worked out in float64: half-precision
    frequencies ruin long contexts.  Source: `_compute_proportional_rope_parameters`, transformers 5.22.2.
    """
    pairs = head_dim // 2
    turning = int(rotary_factor * head_dim // 2)
    frequencies = theta ** (-2.0 * np.arange(pairs, dtype=np.float64) / head_dim)
    return np.where(np.arange(pairs) < turning, frequencies, 0.0).astype(np.float32)


def rope_angles(
    positions: Int[Array, "b t"], head_dim: int, theta: float, rotary_factor: float = 1.0
) -> tuple[Float[Array, "b t pairs"], Float[Array, "b t pairs"]]:
    """cos and sin of position x frequency, float32."""
    frequencies = inverse_frequencies(head_dim, theta, rotary_factor)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b t heads h"], angles: tuple[Float[Array, "b t pairs"], Float[Array, "b t pairs"]]
) -> Float[Array, "b t heads h"]:
    """Turn each pair (x[i], x[i + h/2]) by its angle.  Source: Su et al. 2021 (arXiv 2104.09864), eq. 34, split-half pairs."""
    cos, sin = (angle[:, :, None, :].astype(x.dtype) for angle in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(
    query_positions: Int[Array, "b t"], key_positions: Int[Array, "b s"], window: int | None
) -> Bool[Array, "b t s"]:
    """Which keys each query sees: itself and earlier ones and, in a sliding layer, only the last `window` of those.

    Positions are absolute.  A negative key position means that the slot holds nothing.
    """
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    seen = (key >= 0) & (key <= query)
    return seen if window is None else seen & (key > query - window)


def attend(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    seen: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Grouped-query attention with scale 1.0 (Gemma 4 normalises q and k instead of dividing by sqrt(h)).

    Query head i reads KV head i // (n/k).  Slots that no query sees may hold anything, NaN included: their scores are
    replaced before the softmax and their values before the sum (0 x NaN would still be NaN).
    A row that sees nothing gets a finite result without meaning.
    Rounding: scores to the dtype of the query, then the softmax in float32, then its result to the dtype of the values, as
    transformers' eager attention does.
    """
    grouped = rearrange(query, "b t (k g) h -> b k g t h", k=key.shape[1])
    scores = score(grouped, key).astype(jnp.float32)
    scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    holds_a_key = seen.any(axis=1)[:, None, :, None]
    out = jnp.einsum("bkgts,bksh->bkgth", probs, jnp.where(holds_a_key, value, 0))
    return rearrange(out, "b k g t h -> b t (k g) h")


def score(query: Float[Array, "b k g t h"], key: Float[Array, "b k s h"]) -> Float[Array, "b k g t s"]:
    """The product of each query with each key, in the form that suits their number.

    A handful, as of one token, on CPU: one by one.  There XLA copies the keys before it multiplies them with several queries at
    once, and not for one: 2 to 4 times as fast for four queries.
    Few queries, as at verify: keys times queries, and turned.  Else a GPU's XLA would turn all keys of the cache, before and
    after each write; on CPU it is as fast.  Many, as at prefill: the other way round, in half the time on CPU.
    """
    _, _, groups, time, _ = query.shape
    if groups * time <= HANDFUL and jax.default_backend() == "cpu":
        each = rearrange(query, "b k g t h -> (g t) b k h")
        scores = jnp.stack([jnp.einsum("bksh,bkh->bks", key, one) for one in each], axis=2)
        return rearrange(scores, "b k (g t) s -> b k g t s", g=groups)
    if groups * time < FEW_ROWS:
        return jnp.moveaxis(jnp.einsum("bksh,bkgth->bksgt", key, query), 2, -1)
    return jnp.einsum("bkgth,bksh->bkgts", query, key)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The tanh approximation (`gelu_pytorch_tanh`), not the error function; in float32, rounded once, as torch does."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def scaled(x: Float[Array, "*shape"], factor: float) -> Float[Array, "*shape"]:
    """x * factor, rounded once as torch does.  JAX's own product rounds the factor to x's dtype first: 0.2% in bfloat16."""
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def softcap(logits: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """cap * tanh(logits / cap): bounds logits to ±cap and keeps their order.  None leaves them as they are."""
    return logits if cap is None else jnp.tanh(logits / cap) * cap


def argmax(scores: Float[Array, "*batch v"]) -> Int[Array, "*batch"]:
    """The lowest index among the highest scores, int32.

    As `jnp.argmax`, but by two plain reductions, which XLA vectorises on CPU: 9 times faster there over [5, 2048].
    """
    is_best = scores == scores.max(axis=-1, keepdims=True)
    return jnp.where(is_best, jnp.arange(scores.shape[-1], dtype=jnp.int32), scores.shape[-1] - 1).min(axis=-1)
