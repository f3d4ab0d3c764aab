"""Experts visit by visit: each token computes its own experts, and no other expert's weights are read."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from gemma4.fast.twin import twin_of
from gemma4.moe import Experts, experts_dense, gated


class SparseExperts(Experts):
    """A twin of `moe.Experts`.

    On CPU the sparse form runs always; it is faster for any number of tokens in float32.  Elsewhere it runs while there are
    fewer visits than experts, so that it reads less.
    """

    backend: str

    def __call__(
        self, x: Float[Array, "b t d"], weights: Float[Array, "b t top_k"], experts: Int[Array, "b t top_k"]
    ) -> Float[Array, "b t d"]:
        is_sparse = self.backend == "cpu" or experts.size < self.gate_up_proj.shape[0]
        form = experts_sparse if is_sparse else experts_dense
        return form(self.gate_up_proj[...], self.down_proj[...], x, weights, experts)


def experts_twin(module: Experts, backend: str) -> SparseExperts:
    return twin_of(module, SparseExperts, backend=backend)


@jax.custom_vjp
def experts_sparse(
    gate_up_proj: Float[Array, "e twice d"],
    down_proj: Float[Array, "e d f"],
    x: Float[Array, "b t d"],
    weights: Float[Array, "b t top_k"],
    experts: Int[Array, "b t top_k"],
) -> Float[Array, "b t d"]:
    """As `moe.experts_dense`, one visit of a token to an expert after the other.

    Visits are sorted by expert, so that all but the first of an expert find its weights in the processor's cache.
    (`jax.lax.ragged_dot`, made for this, is slower than the dense form on CPU: XLA masks a dense product there.)
    """
    tokens = rearrange(x, "b t d -> (b t) d")
    order = jnp.argsort(experts.reshape(-1))

    def visit(total: Array, choice: tuple[Array, Array, Array]) -> tuple[Array, None]:
        token, expert, weight = choice
        # A row times a matrix: for the other order XLA copies the expert's weights first, on CPU.
        out = gated(tokens[token] @ gate_up_proj[expert].T) @ down_proj[expert].T
        return total.at[token].add(weight * out), None

    visits = order // experts.shape[-1], experts.reshape(-1)[order], weights.reshape(-1)[order]
    total, _ = jax.lax.scan(visit, jnp.zeros(tokens.shape, jnp.float32), visits)
    return total.astype(x.dtype).reshape(x.shape)


# The gradient is that of the dense form.  The gradient of a single visit is as large as all experts, and mostly zeros.
experts_sparse.defvjp(
    lambda *args: (experts_sparse(*args), args),
    lambda args, gradient: jax.vjp(experts_dense, *args)[1](gradient),
)
