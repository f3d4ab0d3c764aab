"""Per-layer embeddings (PLE) of E2B and E4B: an extra input vector for each layer and token.

A second table holds one vector for every token and layer.  The per-layer input is that vector plus a projection of the token's
embedding, over sqrt(2).  Each decoder layer gates its input and adds it to the residual stream (`DecoderLayer` in `model.py`).

Source: `get_per_layer_inputs` and `project_per_layer_inputs`, transformers 5.22.2.
"""

from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma4.config import Config
from gemma4.functional import scaled
from gemma4.layers import Embedding, Linear, RMSNorm, Tap, no_tap


class PerLayerEmbeddings(nnx.Module):
    """Token ids and their embeddings to per-layer inputs, [b, t, layers, width]."""

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
        self, tokens: Int[Array, "b t"], embedding: Float[Array, "b t d"], tap: Tap = no_tap
    ) -> Float[Array, "b t layers p"]:
        identity = self._layers(self.embed_tokens_per_layer(tokens))
        projected = scaled(self.per_layer_model_projection(embedding), self.projection_scale)
        context = self.per_layer_projection_norm(self._layers(projected))
        # The per-layer input (PLE): the table's vector and the projected embedding, each of variance 1, over sqrt(2).
        return tap("per_layer_inputs", scaled(context + identity, 2**-0.5))

    def _layers(self, x: Float[Array, "b t packed"]) -> Float[Array, "b t layers p"]:
        return rearrange(x, "b t (layers p) -> b t layers p", p=self.width)
