"""The parts of a decoder layer: modules that hold weights and call the formulas of `functional.py`.

Modules only hold weights (`nnx.Param`) and structure; `__call__` changes nothing.  Attribute names are those of the
Hugging Face checkpoint, so that `layers[3].self_attn.q_proj.weight` is the tensor `layers.3.self_attn.q_proj.weight`.
A linear weight is stored [in, out], the transpose of the checkpoint's: x @ weight.

`tap(name, value)` stands at each point that another implementation would want to compare; it returns the value.
"""

import functools
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
from gemma4.functional import attend, gelu, rms_norm, rotate, scaled
from gemma4.long_attention import attend_in_blocks, is_long

Tap = Callable[[str, jax.Array], jax.Array]


class Place(NamedTuple):
    """Where the tokens of this forward stand, as layers of one type see it."""

    start: Int[Array, " b"] | None  # position of the first token: where an owner writes; None: nothing is left to write
    angles: tuple[Float[Array, "b t pairs"], Float[Array, "b t pairs"]]  # RoPE: cos, sin
    seen: Bool[Array, "b t s"]  # which slots each token attends to


def no_tap(name: str, value: jax.Array) -> jax.Array:
    return value


def scoped(tap: Tap, prefix: str) -> Tap:
    return tap if tap is no_tap else lambda name, value: tap(f"{prefix}.{name}", value)


class Linear(nnx.Module):
    """x @ weight, no bias.  Initialised with standard deviation 1/sqrt(in)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs), dtype) * inputs**-0.5)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return matmul(x, self.weight[...])


def matmul(x: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "*batch outputs"]:
    """x @ weight, as one matrix product: on CPU the gradient of a batched one takes XLA three times as long."""
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1])


def split_last(x: Float[Array, "*batch packed"], size: int) -> Float[Array, "*batch n size"]:
    """Into parts of `size`, as heads are, or what each layer is told."""
    # Else XLA makes one of the split and the product before it, and turns the weights for that on a TPU, at every call.
    return rearrange(jax.lax.optimization_barrier(x), "... (n size) -> ... n size", size=size)


class RMSNorm(nnx.Module):
    def __init__(self, size: int, eps: float, *, dtype: DTypeLike):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return rms_norm(x, self.weight[...], self.eps)


class Embedding(nnx.Module):
    """A table looked up by token id and multiplied by `scale`, sqrt(width) unless given, rounded to the table's dtype first."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike, scale: float | None = None):
        self.scale = width**0.5 if scale is None else scale
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, width), dtype) / self.scale)

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        table = self.weight[...]
        return table[tokens] * jnp.asarray(self.scale, table.dtype)


class Attention(nnx.Module):
    """Grouped-query attention of one layer.  A layer that shares K/V holds the query side only."""

    def __init__(self, config: Config, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, heads, head_dim = config.hidden_size, config.num_attention_heads, config.layer_head_dim(layer)
        self.head_dim = head_dim
        self.eps = config.rms_norm_eps
        self.owns_kv = config.kv_source[layer] == layer
        self.has_v_proj = config.has_v_proj(layer)
        self.q_proj = Linear(width, heads * head_dim, rngs=rngs, dtype=dtype)
        self.q_norm = RMSNorm(head_dim, self.eps, dtype=dtype)
        self.o_proj = Linear(heads * head_dim, width, rngs=rngs, dtype=dtype)
        if self.owns_kv:
            kv_width = config.kv_heads(layer) * head_dim
            self.k_proj = Linear(width, kv_width, rngs=rngs, dtype=dtype)
            self.k_norm = RMSNorm(head_dim, self.eps, dtype=dtype)
            if self.has_v_proj:
                self.v_proj = Linear(width, kv_width, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b t d"], kv: LayerKV | None, place: Place, tap: Tap = no_tap
    ) -> tuple[Float[Array, "b t d"], LayerKV]:
        """kv: an owner's cache so far (None without a cache), or the K/V that this layer shares.  Returns what it read."""
        query = tap("query", rotate(self.q_norm(self._heads(self.q_proj(x))), place.angles))
        if self.owns_kv and place.start is not None:
            kv = self.write_kv(x, kv, place, tap)
        attention = attend_in_blocks if is_long(query.shape[1], kv.capacity) else attend
        out = attention(query, kv.key, kv.value, place.seen)
        out = tap("attention", out.astype(query.dtype))  # a cache may be of another dtype than the model
        return self.o_proj(rearrange(out, "b t n h -> b t (n h)")), kv

    def write_kv(self, x: Float[Array, "b t d"], kv: LayerKV | None, place: Place, tap: Tap = no_tap) -> LayerKV:
        key, value = self._key_value(x, place, tap)
        return LayerKV.of(key, value) if kv is None else write(kv, key, value, place.start)

    def _key_value(self, x, place, tap):
        raw_key = self._heads(self.k_proj(x))
        raw_value = self._heads(self.v_proj(x)) if self.has_v_proj else raw_key  # V is never rotated, never k_norm'ed
        key = tap("key", rotate(self.k_norm(raw_key), place.angles))
        value = tap("value", rms_norm(raw_value, None, self.eps))
        return key, value

    def _heads(self, x):
        return split_last(x, self.head_dim)


class MLP(nnx.Module):
    """Gated MLP: down(gelu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.gate_proj = Linear(width, hidden, rngs=rngs, dtype=dtype)
        self.up_proj = Linear(width, hidden, rngs=rngs, dtype=dtype)
        self.down_proj = Linear(hidden, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))


class PerLayerInputs(nnx.Module):
    """What each layer is told about the token besides the residual stream (E2B and E4B): [b, t, layers, width].

    A table row chosen by the token plus a projection of the token's embedding, over sqrt 2.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.width = config.hidden_size_per_layer_input
        self.projection_scale = config.hidden_size**-0.5
        total = config.num_hidden_layers * self.width
        self.embed_tokens_per_layer = Embedding(
            config.vocab_size_per_layer_input, total, rngs=rngs, dtype=dtype, scale=self.width**0.5
        )
        self.per_layer_model_projection = Linear(config.hidden_size, total, rngs=rngs, dtype=dtype)
        self.per_layer_projection_norm = RMSNorm(self.width, config.rms_norm_eps, dtype=dtype)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        embedding: Float[Array, "b t d"],
        tap: Tap = no_tap,
        layers: slice = slice(None),
    ) -> Float[Array, "b t layers p"]:
        """layers: the ones that are wanted; all unless given."""
        split = functools.partial(split_last, size=self.width)
        identity = split(self.embed_tokens_per_layer(tokens))[:, :, layers]
        projection = rearrange(
            split(self.per_layer_model_projection.weight[...])[:, layers], "d layers p -> d (layers p)"
        )
        context = self.per_layer_projection_norm(split(scaled(matmul(embedding, projection), self.projection_scale)))
        return tap("per_layer_inputs", scaled(context + identity, 2**-0.5))
