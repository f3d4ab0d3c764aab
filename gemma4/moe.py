"""Mixture of experts (26B-A4B): a router picks `top_k` of the experts for each token; the dense MLP runs beside them.

Source: `Gemma4TextRouter` and `Gemma4TextExperts`, transformers 5.22.2.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma4.config import Config
from gemma4.functional import gelu, rms_norm, scaled
from gemma4.layers import Linear, Tap, no_tap


class Router(nnx.Module):
    """Which experts each token visits, and with which weights.

    1. RMSNorm without weight of the raw residual stream, times `scale`, over sqrt(d).
    2. A linear map to one score an expert, and a softmax over all experts in float32.
    3. The top k, renormalised to sum 1.
    4. Each weight times its expert's `per_expert_scale`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.top_k = config.top_k_experts
        self.eps = config.rms_norm_eps
        self.proj = Linear(config.hidden_size, config.num_experts, rngs=rngs, dtype=dtype)
        self.scale = nnx.Param(jnp.ones(config.hidden_size, dtype))
        self.per_expert_scale = nnx.Param(jnp.ones(config.num_experts, dtype))

    def __call__(
        self, residual: Float[Array, "b t d"], tap: Tap = no_tap
    ) -> tuple[Float[Array, "b t top_k"], Int[Array, "b t top_k"]]:
        x = scaled(rms_norm(residual, None, self.eps) * self.scale[...], residual.shape[-1] ** -0.5)
        scores = tap("router_scores", self.proj(x))
        probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        weights, experts = jax.lax.top_k(probs, self.top_k)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        weights = weights * self.per_expert_scale[...].astype(jnp.float32)[experts]
        return tap("router_weights", weights), tap("router_experts", experts)


class Experts(nnx.Module):
    """The gated MLPs of all experts.  Weights are stored as in the checkpoint: gate and up stacked, [expert, out, in].

    Rounding: each expert's output to the model's dtype; weighted and added in float32, and rounded once.  So do "batched_mm"
    and "grouped_mm" in transformers 5.22.2 (`integrations/moe.py`); its "eager" loop adds in the model's dtype.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        experts, width, hidden = config.num_experts, config.hidden_size, config.moe_intermediate_size

        def normal(*shape: int) -> jax.Array:
            return jax.random.normal(rngs.params(), shape, dtype) * shape[-1] ** -0.5

        self.gate_up_proj = nnx.Param(normal(experts, 2 * hidden, width))
        self.down_proj = nnx.Param(normal(experts, width, hidden))

    def __call__(
        self, x: Float[Array, "b t d"], weights: Float[Array, "b t top_k"], experts: Int[Array, "b t top_k"]
    ) -> Float[Array, "b t d"]:
        return experts_dense(self.gate_up_proj[...], self.down_proj[...], x, weights, experts)


def experts_dense(
    gate_up_proj: Float[Array, "e twice d"],
    down_proj: Float[Array, "e d f"],
    x: Float[Array, "b t d"],
    weights: Float[Array, "b t top_k"],
    experts: Int[Array, "b t top_k"],
) -> Float[Array, "b t d"]:
    """Every expert computes every token; the router's weights, zero for most experts, add the outputs up in float32."""
    inner = gated(jnp.einsum("btd,efd->btef", x, gate_up_proj))
    out = jnp.einsum("btef,edf->bted", inner, down_proj)
    one_hot = jax.nn.one_hot(experts, out.shape[2], dtype=weights.dtype)
    einsum_f32 = functools.partial(jnp.einsum, precision="highest")  # GPUs and TPUs round the factors by default
    per_expert = einsum_f32("btc,btce->bte", weights, one_hot)
    return einsum_f32("bte,bted->btd", per_expert, out.astype(jnp.float32)).astype(x.dtype)


def gated(gate_up: Float[Array, "*batch twice"]) -> Float[Array, "*batch f"]:
    """gelu(gate) * up, of both stacked along the last axis."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return gelu(gate) * up
