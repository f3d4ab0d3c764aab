"""The twin of `layers.Attention`: scores in the form that suits a machine, long caches in blocks."""

import functools

import jax
from jaxtyping import Array, Bool, Float

from gemma4.cache import LayerKV
from gemma4.fast.attention_scores import scores
from gemma4.fast.long_attention import attention_in_blocks, is_long
from gemma4.fast.twin import twin_of
from gemma4.functional import attention
from gemma4.layers import Attention, AttentionInputs, Tap, no_tap


class FastAttention(Attention):
    """A twin of `layers.Attention`.  `backend` is that of `for_backend`."""

    backend: str

    def attend(
        self, query: Float[Array, "b t n h"], kv: LayerKV, mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t n h"]:
        if is_long(query.shape[1], kv.capacity):
            return attention_in_blocks(query, kv.key, kv.value, mask, self.backend)
        return attention(query, kv.key, kv.value, mask, functools.partial(scores, backend=self.backend))

    def write_kv(
        self, x: Float[Array, "b t d"], kv: LayerKV | None, inputs: AttentionInputs, tap: Tap = no_tap
    ) -> LayerKV:
        if inputs.start is None:  # `FastGemma4.hidden_at` has written them
            assert kv is not None
            return kv
        return super().write_kv(x, kv, inputs, tap)

    def _heads(self, x: Float[Array, "b t packed"]) -> Float[Array, "b t heads h"]:
        # The barrier stops XLA from fusing the split into the product before it, for which it would transpose the weights on a
        # TPU at every call.
        return super()._heads(jax.lax.optimization_barrier(x))


def attention_twin(module: Attention, backend: str) -> FastAttention:
    return twin_of(module, FastAttention, backend=backend)
