"""The Gemma 4 text decoder: the forward pass on one screen, then one layer, then the public call.

Reads `functional.py`, `cache.py`, `layers.py` and `moe.py`.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from gemma4.cache import KVCache, LayerKV, check_room, slot_positions
from gemma4.config import SLIDING, Config
from gemma4.functional import gelu, rope_angles, softcap, visible
from gemma4.kept import transposed
from gemma4.layers import MLP, Attention, Embedding, Linear, PerLayerInputs, Place, RMSNorm, Tap, matmul, no_tap, scoped
from gemma4.moe import Experts, Router


class Gemma4(nnx.Module):
    """Token ids to hidden rows (after the final norm), and hidden rows to logits."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        if None in config.kv_source:
            raise ValueError(
                "a target needs a layer that owns K/V before every layer of the same type that shares them"
            )
        self.config = config
        width, depth = config.hidden_size, config.num_hidden_layers
        self.embed_tokens = Embedding(config.vocab_size, width, rngs=rngs, dtype=dtype)
        if config.hidden_size_per_layer_input:
            self.per_layer_inputs = PerLayerInputs(config, rngs=rngs, dtype=dtype)
        self.layers = nnx.List([DecoderLayer(config, layer, rngs=rngs, dtype=dtype) for layer in range(depth)])
        self.norm = RMSNorm(width, config.rms_norm_eps, dtype=dtype)
        self.cpu_head = nnx.data(None)  # see `for_cpu`

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        tap: Tap = no_tap,
        *,
        only: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b rows d"], KVCache | None]:
        """Hidden rows (of all tokens, or of the one at index `only`) and the cache with all tokens written.

        With `only`, the last layer that owns K/V writes those of all tokens; from its queries on, everything runs for that
        one token alone: 20 of E2B's 35 layers, and most of a 21st.
        """
        config = self.config
        places = {kind: self._place(kind, tokens, cache) for kind in config.donors}
        kvs: list[LayerKV] = []  # what each layer read

        x = tap("embedding", self.embed_tokens(tokens))
        own_inputs = self._own_inputs(tokens, x, only, tap)

        for i, layer in enumerate(self.layers):
            source = config.kv_source[i]
            past = kvs[source] if source < i else cache.layers[i] if cache else None
            if only is not None and i == config.last_kv_owner:  # of all other tokens nobody needs more than these K/V
                past = layer.write_kv(x, past, places[config.layer_types[i]])
                places = {kind: place._replace(start=None) for kind, place in places.items()}
                x, places = jax.tree.map(lambda rows: one_row(rows, only), (x, places))
            with jax.named_scope(f"layers.{i}"):  # its name in a profile
                x, kv = layer(x, own_inputs[i], past, places[config.layer_types[i]], scoped(tap, f"layers.{i}"))
            kvs.append(kv)

        if cache:
            owned = tuple(kv if config.kv_source[i] == i else None for i, kv in enumerate(kvs))
            cache = KVCache(owned, cache.length + tokens.shape[1])
        return tap("hidden", self.norm(x)), cache

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch v"]:
        """Scores of the next token, float32: the embedding table again (tied), then the soft cap."""
        # One row reads the table as fast as it lies; in bfloat16, ten times as fast.
        is_one_row = hidden.size == hidden.shape[-1]
        head = self.embed_tokens.weight[...].T if self.cpu_head is None or is_one_row else self.cpu_head[...]
        return softcap(matmul(hidden, head).astype(jnp.float32), self.config.final_logit_softcapping)

    def for_cpu(self) -> "Gemma4":
        """The same weights, and beside them the table laid out as `logits` reads it.  To run on a CPU, not to be saved."""
        twin = copy.copy(self)  # shares all modules
        twin.cpu_head = nnx.Variable(transposed(self.embed_tokens.weight[...]))
        return twin

    def _own_inputs(self, tokens, x, only, tap) -> list[Float[Array, "b rows p"] | None]:
        """Per-layer inputs, layer by layer; with `only`, those of that token for the layers that run for it alone."""
        depth = self.config.num_hidden_layers
        if not self.config.hidden_size_per_layer_input:
            return [None] * depth
        of_layers = lambda packed: list(jnp.moveaxis(packed, 2, 0))
        if only is None:
            return of_layers(self.per_layer_inputs(tokens, x, tap))
        all_tokens, one_token = slice(0, self.config.last_kv_owner), slice(self.config.last_kv_owner, depth)
        tokens_at, x_at = one_row(tokens, only), one_row(x, only)
        return [
            *of_layers(self.per_layer_inputs(tokens, x, layers=all_tokens)),
            *of_layers(self.per_layer_inputs(tokens_at, x_at, layers=one_token)),
        ]

    def _place(self, kind: str, tokens: Int[Array, "b t"], cache: KVCache | None) -> Place:
        config, (batch, time) = self.config, tokens.shape
        start = cache.length if cache else jnp.zeros(batch, jnp.int32)
        positions = start[:, None] + jnp.arange(time)
        kv = cache.layers[config.donors[kind]] if cache else None
        key_positions = slot_positions(positions[:, -1], kv.capacity) if kv else positions
        seen = visible(positions, key_positions, config.sliding_window if kind == SLIDING else None)
        return Place(start, rope_angles(positions, *config.rope(kind)), seen)


class DecoderLayer(nnx.Module):
    """Attention and MLP, each between two norms and added to the residual; then what the configuration adds."""

    def __init__(self, config: Config, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, per_layer_width = config.hidden_size, config.hidden_size_per_layer_input
        norm = lambda: RMSNorm(width, config.rms_norm_eps, dtype=dtype)
        self.has_experts = config.enable_moe_block
        self.has_own_input = bool(per_layer_width)
        self.input_layernorm = norm()
        self.self_attn = Attention(config, layer, rngs=rngs, dtype=dtype)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = MLP(width, config.mlp_width(layer), rngs=rngs, dtype=dtype)
        self.post_feedforward_layernorm = norm()
        if self.has_experts:
            self.router = Router(config, rngs=rngs, dtype=dtype)
            self.experts = Experts(config, rngs=rngs, dtype=dtype)
            self.post_feedforward_layernorm_1 = norm()
            self.pre_feedforward_layernorm_2 = norm()
            self.post_feedforward_layernorm_2 = norm()
        if self.has_own_input:
            self.per_layer_input_gate = Linear(width, per_layer_width, rngs=rngs, dtype=dtype)
            self.per_layer_projection = Linear(per_layer_width, width, rngs=rngs, dtype=dtype)
            self.post_per_layer_input_norm = norm()
        self.layer_scalar = nnx.Param(jnp.ones(1, dtype))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        own_input: Float[Array, "b t p"] | None,
        kv: LayerKV | None,
        place: Place,
        tap: Tap = no_tap,
    ) -> tuple[Float[Array, "b t d"], LayerKV]:
        attended, kv = self.self_attn(tap("input_layernorm", self.input_layernorm(x)), kv, place, tap)
        x = tap("after_attention", x + self.post_attention_layernorm(tap("self_attn", attended)))

        update = tap("mlp", self.mlp(tap("pre_feedforward_layernorm", self.pre_feedforward_layernorm(x))))
        if self.has_experts:
            update = self.post_feedforward_layernorm_1(update) + self._mixture(x, tap)
        x = tap("after_mlp", x + self.post_feedforward_layernorm(update))

        if self.has_own_input:
            gated = gelu(self.per_layer_input_gate(x)) * own_input
            x = x + self.post_per_layer_input_norm(tap("per_layer_projection", self.per_layer_projection(gated)))
        return tap("output", x * self.layer_scalar[...]), kv  # the scalar multiplies the residual too, and last

    def write_kv(self, x: Float[Array, "b t d"], kv: LayerKV | None, place: Place) -> LayerKV:
        """The part of the layer that other tokens depend on: its keys and values, in the cache."""
        return self.self_attn.write_kv(self.input_layernorm(x), kv, place)

    def _mixture(self, residual, tap):
        weights, chosen = self.router(residual, tap)  # the router sees the raw residual, the experts a normed one
        out = tap("experts", self.experts(self.pre_feedforward_layernorm_2(residual), weights, chosen))
        return self.post_feedforward_layernorm_2(out)


def one_row(rows: Array, index: Int[Array, " b"]) -> Array:
    """[b, t, ...] to [b, 1, ...]: row `index` of each batch row."""
    return jnp.take_along_axis(rows, index.reshape(-1, *[1] * (rows.ndim - 1)), axis=1)


class Output(NamedTuple):
    logits: Float[Array, "b t v"]  # float32, soft-capped
    hidden: Float[Array, "b t d"]  # after the final norm: what the logits were computed from, and what a drafter reads
    cache: KVCache | None


def forward(
    target: Gemma4, tokens: ArrayLike | Sequence[Sequence[int]], cache: KVCache | None = None, *, tap: Tap | None = None
) -> Output:
    """One forward pass over `tokens`, which stand after what the cache holds (or at position 0 without a cache).

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


def check_tokens(config: Config, tokens) -> jax.Array:
    """Token ids as int32 [b, t].  Errors: ValueError unless they are integers in 0..vocab-1, at least one a row."""
    if isinstance(tokens, jax.core.Tracer):
        return tokens
    array = np.asarray(tokens)
    if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"tokens: expected integers of shape [batch, time], not empty, got {array.dtype} {array.shape}"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= config.vocab_size:
        bad = low if low < 0 else high
        raise ValueError(f"token id {bad} is out of range: this model's vocabulary is 0..{config.vocab_size - 1}")
    return jnp.asarray(array, jnp.int32)
