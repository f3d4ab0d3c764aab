"""The twin of `Gemma4`: a prefill without the hidden states that nothing reads."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4.cache import KVCache, LayerKV
from gemma4.fast.per_layer_embeddings import FastPerLayerEmbeddings
from gemma4.fast.twin import twin_of
from gemma4.functional import select_position
from gemma4.model import Gemma4


class FastGemma4(Gemma4):
    """A twin of `model.Gemma4`."""

    per_layer_embeddings: FastPerLayerEmbeddings

    def hidden_at(
        self, tokens: Int[Array, "b t"], cache: KVCache, index: Int[Array, " b"]
    ) -> tuple[Float[Array, "b d"], KVCache]:
        """As in the reference, but from the queries of the last layer that owns K/V on, everything runs for one token alone.

        The other tokens matter only through the K/V that they write: in E2B, 20 of 35 layers and most of a 21st are left out.
        """
        config, last_owner = self.config, self.config.first_kv_shared_layer - 1
        inputs = {kind: self.attention_inputs(kind, tokens, cache) for kind in config.donors}
        x = self.embed_tokens(tokens)
        lower, upper = slice(0, last_owner), slice(last_owner, config.num_hidden_layers)
        kvs: list[LayerKV] = []

        per_layer_inputs = self._per_layer_inputs(tokens, x, lower)
        one_token, one_x = _keep(tokens, index), _keep(x, index)
        for i in range(last_owner):
            source = config.kv_source[i]
            kv = kvs[source] if source < i else cache.layers[i]
            x, kv = self.layers[i](x, per_layer_inputs[i], kv, inputs[config.layer_types[i]])
            kvs.append(kv)

        layer, inputs_of_owner = self.layers[last_owner], inputs[config.layer_types[last_owner]]
        written = layer.self_attn.write_kv(layer.input_layernorm(x), cache.layers[last_owner], inputs_of_owner)
        per_layer_inputs += self._per_layer_inputs(one_token, one_x, upper)
        inputs = {kind: of_kind._replace(start=None) for kind, of_kind in inputs.items()}  # nothing is left to write
        x, inputs = jax.tree.map(lambda values: _keep(values, index), (x, inputs))
        for i in range(last_owner, config.num_hidden_layers):
            kv = written if i == last_owner else kvs[config.kv_source[i]]
            x, kv = self.layers[i](x, per_layer_inputs[i], kv, inputs[config.layer_types[i]])
            kvs.append(kv)

        updated = self.updated(cache, kvs, tokens.shape[1])
        assert updated is not None
        return self.norm(x)[:, 0], updated

    def _per_layer_inputs(
        self, tokens: Int[Array, "b t"], x: Float[Array, "b t d"], layers: slice
    ) -> list[Float[Array, "b t p"] | None]:
        if not self.config.hidden_size_per_layer_input:
            return [None] * (layers.stop - layers.start)
        return list(jnp.moveaxis(self.per_layer_embeddings.of_layers(tokens, x, layers), 2, 0))


def target_twin(target: Gemma4) -> FastGemma4:
    twin = twin_of(target, FastGemma4)
    if target.config.hidden_size_per_layer_input:
        twin.per_layer_embeddings = twin_of(target.per_layer_embeddings, FastPerLayerEmbeddings)
    return twin


def _keep(values: Any, index: Int[Array, " b"]) -> Array:
    """[b, t, ...] to [b, 1, ...]: the token at `index` of each row."""
    return select_position(values, index)[:, None]
