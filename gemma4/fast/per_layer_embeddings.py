"""The twin of `PerLayerEmbeddings`: inputs of some layers without those of the others, for `hidden_at`."""

import jax
from einops import rearrange
from jaxtyping import Array, Float, Int

from gemma4.functional import scaled
from gemma4.per_layer_embeddings import PerLayerEmbeddings


class FastPerLayerEmbeddings(PerLayerEmbeddings):
    def of_layers(
        self, tokens: Int[Array, "b t"], embedding: Float[Array, "b t d"], layers: slice
    ) -> Float[Array, "b t layers p"]:
        """`self(tokens, embedding)[:, :, layers]`."""
        weight = rearrange(self.per_layer_model_projection.weight[...], "d (layers p) -> d layers p", p=self.width)
        weight = rearrange(weight[:, layers], "d layers p -> d (layers p)")
        context = self.per_layer_projection_norm(self._layers(scaled(embedding @ weight, self.projection_scale)))
        identity = self._layers(self.embed_tokens_per_layer(tokens))[:, :, layers]
        return scaled(context + identity, 2**-0.5)

    def _layers(self, x: Float[Array, "b t packed"]) -> Float[Array, "b t layers p"]:
        return super()._layers(jax.lax.optimization_barrier(x))  # as in `FastAttention._heads`
