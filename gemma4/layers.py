"""The parts of a decoder layer: modules that hold weights and call the formulas of `functional.py`.

Modules only hold weights (`nnx.Param`) and structure; `__call__` changes nothing.  Attribute names are those of the
Hugging Face checkpoint, so `layers[3].self_attn.q_proj.weight` is the tensor `layers.3.self_attn.q_proj.weight` (there is no
`per_layer_embeddings.` in its names).  A linear weight is stored [in, out], the transpose of the checkpoint's: x @ weight.
`weight[...]` is the array in an `nnx.Param`.

`tap(name, value)` stands at each point that another implementation would want to compare; it returns the value.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gemma4.cache import LayerKV, write
from gemma4.config import Config
from gemma4.functional import apply_rope, attention, gelu, rms_norm

Tap = Callable[[str, jax.Array], jax.Array]


class AttentionInputs(NamedTuple):
    """What all layers of one type need to know about the tokens of this forward."""

    start: Int[Array, " b"] | None  # position of the first token, where K/V are written; None: nothing is written
    cos_sin: tuple[Float[Array, "b t pairs"], Float[Array, "b t pairs"]]  # RoPE
    mask: Bool[Array, "b t s"]  # which slots each token sees


def no_tap(name: str, value: jax.Array) -> jax.Array:
    return value


def scoped(tap: Tap, prefix: str) -> Tap:
    """`tap` with `prefix` before every name."""
    return tap if tap is no_tap else lambda name, value: tap(f"{prefix}.{name}", value)


class Linear(nnx.Module):
    """x @ weight, no bias.  Initialised with standard deviation 1/sqrt(in)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs), dtype) * inputs**-0.5)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.weight[...]


class RMSNorm(nnx.Module):
    def __init__(self, size: int, eps: float, *, dtype: DTypeLike):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return rms_norm(x, self.weight[...], self.eps)


class Embedding(nnx.Module):
    """A table row for each token id, times `scale` (sqrt(width) unless given), which is rounded to the table's dtype first."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike, scale: float | None = None):
        self.scale = width**0.5 if scale is None else scale
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, width), dtype) / self.scale)

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        table = self.weight[...]
        return table[tokens] * jnp.asarray(self.scale, table.dtype)


class Attention(nnx.Module):
    """Grouped-query attention (GQA) of one layer.  A layer that shares K/V holds the query side only.

    k_eq_v: full layers of 12B, 26B-A4B and 31B have no v_proj; V is the raw key projection through V's norm.
    """

    def __init__(self, config: Config, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, heads, head_dim = config.hidden_size, config.num_attention_heads, config.layer_head_dim(layer)
        self.head_dim = head_dim
        self.eps = config.rms_norm_eps
        self.owns_kv = config.kv_source[layer] == layer
        self.k_eq_v = config.k_eq_v(layer)
        self.q_proj = Linear(width, heads * head_dim, rngs=rngs, dtype=dtype)
        self.q_norm = RMSNorm(head_dim, self.eps, dtype=dtype)
        self.o_proj = Linear(heads * head_dim, width, rngs=rngs, dtype=dtype)
        if self.owns_kv:
            kv_width = config.kv_heads(layer) * head_dim
            self.k_proj = Linear(width, kv_width, rngs=rngs, dtype=dtype)
            self.k_norm = RMSNorm(head_dim, self.eps, dtype=dtype)
            if not self.k_eq_v:
                self.v_proj = Linear(width, kv_width, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b t d"], kv: LayerKV | None, inputs: AttentionInputs, tap: Tap = no_tap
    ) -> tuple[Float[Array, "b t d"], LayerKV]:
        """kv: an owner's cache so far (None without a cache), or the K/V that this layer shares.  Returns the K/V it read."""
        query = tap("query", apply_rope(self.q_norm(self._heads(self.q_proj(x))), inputs.cos_sin))
        if self.owns_kv:
            kv = self.write_kv(x, kv, inputs, tap)
        assert kv is not None, "a layer that owns no K/V needs those that it shares"
        out = tap(
            "attention", self.attend(query, kv, inputs.mask).astype(query.dtype)
        )  # a cache may have another dtype
        return self.o_proj(rearrange(out, "b t n h -> b t (n h)")), kv

    def attend(
        self, query: Float[Array, "b t n h"], kv: LayerKV, mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t n h"]:
        return attention(query, kv.key, kv.value, mask)

    def write_kv(
        self, x: Float[Array, "b t d"], kv: LayerKV | None, inputs: AttentionInputs, tap: Tap = no_tap
    ) -> LayerKV:
        """The K/V of these tokens, after those that `kv` holds."""
        key, value = self._key_value(x, inputs, tap)
        if kv is None:
            return LayerKV.of(key, value)
        assert inputs.start is not None
        return write(kv, key, value, inputs.start)

    def _key_value(
        self, x: Float[Array, "b t d"], inputs: AttentionInputs, tap: Tap
    ) -> tuple[Float[Array, "b t k h"], Float[Array, "b t k h"]]:
        raw_key = self._heads(self.k_proj(x))
        raw_value = raw_key if self.k_eq_v else self._heads(self.v_proj(x))  # V gets neither k_norm nor RoPE
        key = tap("key", apply_rope(self.k_norm(raw_key), inputs.cos_sin))
        value = tap("value", rms_norm(raw_value, None, self.eps))
        return key, value

    def _heads(self, x: Float[Array, "b t packed"]) -> Float[Array, "b t heads h"]:
        return rearrange(x, "b t (heads h) -> b t heads h", h=self.head_dim)


class MLP(nnx.Module):
    """Gated MLP: down(gelu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.gate_proj = Linear(width, hidden, rngs=rngs, dtype=dtype)
        self.up_proj = Linear(width, hidden, rngs=rngs, dtype=dtype)
        self.down_proj = Linear(hidden, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))
