"""Mixture of experts (26B-A4B): a router picks `top_k` of the experts for each token; the dense MLP runs beside them.

The router's law (transformers 5.22.2, `Gemma4TextRouter`): RMSNorm without weight of the raw residual, times `scale`, over
sqrt(d); a linear map to one score an expert; softmax over all experts in float32; the top k, renormalised to sum 1; and
last each weight times its expert's `per_expert_scale`.
"""

import functools

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

    Rounding: each expert's output to the model's dtype; weighted and added up in float32, and rounded once.  So do "batched_mm"
    and "grouped_mm" in transformers 5.22.2 (`integrations/moe.py`); its "eager" loop adds up in the model's dtype.

    Two forms of one formula, `dense` and `chosen`.  On CPU `chosen` runs, the faster one for any number of tokens (float32; in
    bfloat16 as fast from 40 on); elsewhere, not measured yet, while there are fewer visits than experts, so that it reads less.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        experts, width, hidden = config.num_experts, config.hidden_size, config.moe_intermediate_size
        normal = lambda *shape: jax.random.normal(rngs.params(), shape, dtype) * shape[-1] ** -0.5
        self.gate_up_proj = nnx.Param(normal(experts, 2 * hidden, width))
        self.down_proj = nnx.Param(normal(experts, width, hidden))

    def __call__(
        self, x: Float[Array, "b t d"], weights: Float[Array, "b t top_k"], experts: Int[Array, "b t top_k"]
    ) -> Float[Array, "b t d"]:
        visit_by_visit = jax.default_backend() == "cpu" or experts.size < self.gate_up_proj.shape[0]
        return (chosen if visit_by_visit else dense)(self.gate_up_proj[...], self.down_proj[...], x, weights, experts)


def dense(gate_up_proj, down_proj, x, weights, experts):
    """Every expert computes every token; the router's weights, zero for most, add them up.

    gate_up_proj [e, 2f, d], down_proj [e, d, f]; x [b, t, d]; weights (float32) and experts (ids) [b, t, top_k].
    Returns [b, t, d], added up in float32.
    """
    inner = gated(jnp.einsum("btd,efd->btef", x, gate_up_proj))
    out = jnp.einsum("btef,edf->bted", inner, down_proj)
    one_hot = jax.nn.one_hot(experts, out.shape[2], dtype=weights.dtype)
    in_full = functools.partial(jnp.einsum, precision="highest")  # float32, where a GPU or TPU would round the factors
    per_expert = in_full("btc,btce->bte", weights, one_hot)
    return in_full("bte,bted->btd", per_expert, out.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def chosen(gate_up_proj, down_proj, x, weights, experts):
    """As `dense`, but each token visits its own experts, one visit after the other; no other expert's weights are read.

    Visits are sorted by expert: all but the first of an expert find its weights in the processor's cache.
    (`jax.lax.ragged_dot`, made for this, is slower than `dense` on CPU: XLA masks a dense product there.)
    """
    rows = rearrange(x, "b t d -> (b t) d")
    order = jnp.argsort(experts.reshape(-1))

    def visit(total, choice):
        row, expert, weight = choice
        # A row times a matrix: the other way round XLA copies the expert's weights first, on CPU.
        out = gated(rows[row] @ gate_up_proj[expert].T) @ down_proj[expert].T
        return total.at[row].add(weight * out), None

    visits = order // experts.shape[-1], experts.reshape(-1)[order], weights.reshape(-1)[order]
    total, _ = jax.lax.scan(visit, jnp.zeros(rows.shape, jnp.float32), visits)
    return total.astype(x.dtype).reshape(x.shape)


# The gradient is that of `dense`: that of a visit is as large as all experts, and mostly zeros.
chosen.defvjp(lambda *args: (chosen(*args), args), lambda args, gradient: jax.vjp(dense, *args)[1](gradient))


def gated(gate_up: Float[Array, "*batch twice"]) -> Float[Array, "*batch f"]:
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return gelu(gate) * up
