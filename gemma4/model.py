"""The Gemma 4 text decoder: the forward pass on one screen, then one layer, then the public call.

Builds on `functional.py`, `cache.py`, `layers.py`, `per_layer_embeddings.py` and `moe.py`.  `layers.py` defines
`AttentionInputs`, and `tap`, a hook that sees each named value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from gemma4.cache import KVCache, LayerKV, check_room, slot_positions
from gemma4.config import SLIDING, Config
from gemma4.functional import attention_mask, gelu, rope_cos_sin, select_position, softcap
from gemma4.layers import MLP, Attention, AttentionInputs, Embedding, Linear, RMSNorm, Tap, no_tap, scoped
from gemma4.moe import Experts, Router
from gemma4.per_layer_embeddings import PerLayerEmbeddings


class Gemma4(nnx.Module):
    """Token ids to hidden states (after the final norm), and hidden states to logits."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        if None in config.kv_source:
            raise ValueError(
                "a target needs a layer that owns K/V before every layer of the same type that shares them"
            )
        self.config = config
        width, depth = config.hidden_size, config.num_hidden_layers
        self.embed_tokens = Embedding(config.vocab_size, width, rngs=rngs, dtype=dtype)
        if config.hidden_size_per_layer_input:
            self.per_layer_embeddings = PerLayerEmbeddings(config, rngs=rngs, dtype=dtype)
        self.layers = nnx.List([DecoderLayer(config, layer, rngs=rngs, dtype=dtype) for layer in range(depth)])
        self.norm = RMSNorm(width, config.rms_norm_eps, dtype=dtype)

    @overload
    def __call__(self, tokens: jax.Array, cache: None = None, tap: Tap = no_tap) -> tuple[jax.Array, None]: ...
    @overload
    def __call__(self, tokens: jax.Array, cache: KVCache, tap: Tap = no_tap) -> tuple[jax.Array, KVCache]: ...
    def __call__(
        self, tokens: Int[Array, "b t"], cache: KVCache | None = None, tap: Tap = no_tap
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """The hidden state of each token, and the cache with all tokens written."""
        config = self.config
        inputs = {kind: self.attention_inputs(kind, tokens, cache) for kind in config.donors}
        x = tap("embedding", self.embed_tokens(tokens))
        has_ple = config.hidden_size_per_layer_input > 0  # per-layer embeddings (PLE)
        per_layer_inputs = self.per_layer_embeddings(tokens, x, tap) if has_ple else None

        kvs: list[LayerKV] = []  # the K/V that each layer read
        for i, layer in enumerate(self.layers):
            source = config.kv_source[i]
            if source < i:  # shared K/V: those that an earlier layer has just written
                kv = kvs[source]
            else:
                kv = cache.layers[i] if cache else None
            per_layer_input = None if per_layer_inputs is None else per_layer_inputs[:, :, i]
            with jax.named_scope(f"layers.{i}"):  # its name in a profile
                x, kv = layer(x, per_layer_input, kv, inputs[config.layer_types[i]], scoped(tap, f"layers.{i}"))
            kvs.append(kv)

        # The hidden states: normed, as the LM head and the drafter read them.
        return tap("hidden", self.norm(x)), self.updated(cache, kvs, tokens.shape[1])

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch v"]:
        """Scores of the next token, float32: the embedding table again (tied), then the soft cap."""
        scores = hidden @ self.embed_tokens.weight[...].T
        return softcap(scores.astype(jnp.float32), self.config.final_logit_softcapping)

    def hidden_at(
        self, tokens: Int[Array, "b t"], cache: KVCache, index: Int[Array, " b"]
    ) -> tuple[Float[Array, "b d"], KVCache]:
        """The hidden state of one token a row, at `index`, and the cache with all tokens written: what a prefill needs."""
        hidden, cache = self(tokens, cache)
        return select_position(hidden, index), cache

    def attention_inputs(self, kind: str, tokens: Int[Array, "b t"], cache: KVCache | None) -> AttentionInputs:
        """Positions, RoPE and mask of `tokens` in layers of type `kind`."""
        config, (batch, time) = self.config, tokens.shape
        start = cache.length if cache else jnp.zeros(batch, jnp.int32)
        positions = start[:, None] + jnp.arange(time)
        kv = cache.layers[config.donors[kind]] if cache else None  # any owner of this type: all have the same slots
        key_positions = slot_positions(positions[:, -1], kv.capacity) if kv else positions
        mask = attention_mask(positions, key_positions, config.sliding_window if kind == SLIDING else None)
        return AttentionInputs(start, rope_cos_sin(positions, *config.rope(kind)), mask)

    def updated(self, cache: KVCache | None, kvs: Sequence[LayerKV], time: int) -> KVCache | None:
        """The cache after a forward over `time` tokens in which layer i read kvs[i]."""
        if cache is None:
            return None
        owned = tuple(kv if self.config.kv_source[i] == i else None for i, kv in enumerate(kvs))
        return KVCache(owned, cache.length + time)


class DecoderLayer(nnx.Module):
    """Attention and MLP, each between two norms and added to the residual stream.

    In 26B-A4B, experts (MoE) are added to the MLP's output before its second norm.  In E2B and E4B, the per-layer input comes
    last.
    """

    def __init__(self, config: Config, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, per_layer_width = config.hidden_size, config.hidden_size_per_layer_input

        def norm() -> RMSNorm:
            return RMSNorm(width, config.rms_norm_eps, dtype=dtype)

        self.has_experts = config.enable_moe_block
        self.has_per_layer_input = bool(per_layer_width)
        self.input_layernorm = norm()
        self.self_attn = Attention(config, layer, rngs=rngs, dtype=dtype)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = MLP(width, config.mlp_width(layer), rngs=rngs, dtype=dtype)
        self.post_feedforward_layernorm = norm()
        if self.has_experts:
            self.router = Router(config, rngs=rngs, dtype=dtype)
            self.experts = Experts(config, rngs=rngs, dtype=dtype)
            # The checkpoint's names: _1 is of the dense MLP, _2 of the experts.
            self.post_feedforward_layernorm_1 = norm()
            self.pre_feedforward_layernorm_2 = norm()
            self.post_feedforward_layernorm_2 = norm()
        if self.has_per_layer_input:
            self.per_layer_input_gate = Linear(width, per_layer_width, rngs=rngs, dtype=dtype)
            self.per_layer_projection = Linear(per_layer_width, width, rngs=rngs, dtype=dtype)
            self.post_per_layer_input_norm = norm()
        self.layer_scalar = nnx.Param(jnp.ones(1, dtype))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        per_layer_input: Float[Array, "b t p"] | None,
        kv: LayerKV | None,
        inputs: AttentionInputs,
        tap: Tap = no_tap,
    ) -> tuple[Float[Array, "b t d"], LayerKV]:
        attended, kv = self.self_attn(tap("input_layernorm", self.input_layernorm(x)), kv, inputs, tap)
        x = tap("after_attention", x + self.post_attention_layernorm(tap("self_attn", attended)))

        update = tap("mlp", self.mlp(tap("pre_feedforward_layernorm", self.pre_feedforward_layernorm(x))))
        if self.has_experts:
            update = self.post_feedforward_layernorm_1(update) + self._mixture(x, tap)
        x = tap("after_mlp", x + self.post_feedforward_layernorm(update))

        if self.has_per_layer_input:
            assert per_layer_input is not None
            gated = gelu(self.per_layer_input_gate(x)) * per_layer_input  # PLE: a gate for the layer's own input
            x = x + self.post_per_layer_input_norm(tap("per_layer_projection", self.per_layer_projection(gated)))
        return tap("output", x * self.layer_scalar[...]), kv  # a learned scalar for the whole residual stream

    def _mixture(self, residual: Float[Array, "b t d"], tap: Tap) -> Float[Array, "b t d"]:
        weights, experts = self.router(residual, tap)  # the router sees the raw residual, the experts a normed one
        out = tap("experts", self.experts(self.pre_feedforward_layernorm_2(residual), weights, experts))
        return self.post_feedforward_layernorm_2(out)


class Output(NamedTuple):
    logits: Float[Array, "b t v"]  # float32, soft-capped
    hidden: Float[Array, "b t d"]  # hidden states after the final norm, which the head and the drafter read
    cache: KVCache | None


def forward(
    target: Gemma4, tokens: ArrayLike | Sequence[Sequence[int]], cache: KVCache | None = None, *, tap: Tap | None = None
) -> Output:
    """One forward pass over `tokens`, which follow what the cache holds (without a cache they begin at position 0).

    Shapes:  tokens [b, t] integers; logits [b, t, vocab] float32; hidden [b, t, d].
    tap:     called as tap(name, value) at every named point, and must return the value; the pass then runs unjitted.
    Errors:  ValueError for ids outside 0..vocab-1, an empty input, a cache of another batch size, or one without room.
             Ids and lengths are checked only where they are concrete, that is outside jit.
    """
    tokens = check_tokens(target.config, tokens)
    if cache is not None:
        check_room(target.config, cache, *tokens.shape)
    if tap is None:
        return _forward(target, tokens, cache)
    hidden, cache = target(tokens, cache, tap)
    return Output(tap("logits", target.logits(hidden)), hidden, cache)


@jax.jit
def _forward(target: Gemma4, tokens: jax.Array, cache: KVCache | None) -> Output:
    hidden, cache = target(tokens, cache)
    return Output(target.logits(hidden), hidden, cache)


def check_tokens(config: Config, tokens: ArrayLike | Sequence[Sequence[int]]) -> jax.Array:
    """Token ids as int32 [b, t].  Errors: ValueError unless they are integers in 0..vocab-1, at least one a row."""
    if isinstance(tokens, Tracer):
        return tokens
    return jnp.asarray(check_ids(config, tokens))


def check_ids(config: Config, tokens: Any) -> np.ndarray:
    """As `check_tokens`, on the host."""
    array = np.asarray(tokens)
    if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"tokens: expected integers of shape [batch, time], not empty, got {array.dtype} {array.shape}"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= config.vocab_size:
        bad = low if low < 0 else high
        raise ValueError(f"token id {bad} is out of range: this model's vocabulary is 0..{config.vocab_size - 1}")
    return array.astype(np.int32)
