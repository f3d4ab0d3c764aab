"""Numbers that are not finite: one error that names their cause, in place of a text that repeats one token."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from gemma4.checkpoints.params import named_params


class NotFinite(ValueError):
    """The target computed a NaN or an infinite number."""


def is_finite(logits: Float[Array, "b t v"]) -> Bool[Array, " b"]:
    """By their maximum, which is computed anyway: it is NaN if one of them is.  A -inf among them passes."""
    return jnp.isfinite(logits.max(axis=-1)).all(axis=1)


def not_finite(target: nnx.Module) -> NotFinite:
    """The error, which names the first damaged weight, or an overflow if no weight is damaged."""
    for name, weight in named_params(target).items():
        if jnp.issubdtype(weight.dtype, jnp.floating) and not jnp.isfinite(weight).all():
            where = np.argwhere(~np.asarray(jnp.isfinite(weight)))[0].tolist()
            advice = "fetch the checkpoint again"
            if weight.dtype == jnp.float16:
                advice += ", or load the target as float32 or bfloat16, whose numbers reach further"
            return NotFinite(
                f"the target's weight {name} holds a number that is not finite, {weight[tuple(where)]} at {where}: {advice}"
            )
    dtype = next(iter(named_params(target).values())).dtype
    return NotFinite(
        f"the target's numbers are not finite in {dtype}, and its weights are: they overflow; load the target as "
        "float32 or bfloat16"
    )
