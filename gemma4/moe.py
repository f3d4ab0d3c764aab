"""Mixture of experts (26B-A4B): a router picks `top_k` of the experts for each token; the dense MLP runs beside them.

The router's law (transformers 5.22.2, `Gemma4TextRouter`): RMSNorm without weight of the raw residual, times `scale`, over
sqrt(d); a linear map to one score an expert; softmax over all experts in float32; the top k, renormalised to sum 1; and
last each weight times its expert's `per_expert_scale`.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma4.config import Config
from gemma4.functional import gelu, rms_norm, scaled
from gemma4.layers import Linear, Tap, no_tap


class Router(nnx.Module):
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
    """All experts' gated MLPs.  Weights are stored as in the checkpoint: gate and up rows stacked, [expert, out, in].

    Two forms of one formula.  `dense`: every expert computes every token, and the router's weights, zero for most, add them
    up.  `chosen`: each token visits its own experts, so that no other expert's weights are read; on CPU it is the faster
    one until there are about as many visits as experts.  (`jax.lax.ragged_dot` is slower than `dense` there: it masks a
    dense product.)
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        experts, width, hidden = config.num_experts, config.hidden_size, config.moe_intermediate_size
        normal = lambda *shape: jax.random.normal(rngs.params(), shape, dtype) * shape[-1] ** -0.5
        self.gate_up_proj = nnx.Param(normal(experts, 2 * hidden, width))
        self.down_proj = nnx.Param(normal(experts, width, hidden))

    def __call__(
        self, x: Float[Array, "b t d"], weights: Float[Array, "b t top_k"], experts: Int[Array, "b t top_k"]
    ) -> Float[Array, "b t d"]:
        return (self.chosen if self.reads_chosen_only(experts.size) else self.dense)(x, weights, experts)

    def reads_chosen_only(self, visits: int) -> bool:
        return visits < self.gate_up_proj.shape[0]

    def dense(self, x, weights, experts):
        inner = gated(jnp.einsum("btd,efd->btef", x, self.gate_up_proj[...]))
        out = jnp.einsum("btef,edf->bted", inner, self.down_proj[...])
        one_hot = jax.nn.one_hot(experts, out.shape[2], dtype=weights.dtype)
        per_expert = jnp.einsum("btk,btke->bte", weights, one_hot)
        return jnp.einsum("bte,bted->btd", per_expert, out.astype(jnp.float32)).astype(x.dtype)

    def chosen(self, x, weights, experts):
        gate_up_proj, down_proj = self.gate_up_proj[...], self.down_proj[...]

        def token(row, weights, experts):
            def visit(total, choice):
                weight, expert = choice
                return total + weight * (down_proj[expert] @ gated(gate_up_proj[expert] @ row)), None

            return jax.lax.scan(visit, jnp.zeros(row.shape, jnp.float32), (weights, experts))[0].astype(row.dtype)

        rows = [rearrange(array, "b t last -> (b t) last") for array in (x, weights, experts)]
        return jax.lax.map(lambda args: token(*args), tuple(rows)).reshape(x.shape)


def gated(gate_up: Float[Array, "*batch twice"]) -> Float[Array, "*batch f"]:
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return gelu(gate) * up
