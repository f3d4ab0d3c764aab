"""Numbers that are not finite: one error that names their cause, in place of a text that repeats one token."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from gemma4.checkpoints.params import named_params


class NotFinite(ValueError):
    """The target or the drafter computed a NaN or an infinite number."""


def is_finite(numbers: Float[Array, "b t v"]) -> Bool[Array, " b"]:
    """By their maximum, which is computed anyway: it is NaN if one of them is.  A -inf among them passes."""
    return jnp.isfinite(numbers.max(axis=-1)).all(axis=1)


def not_finite(target: nnx.Module, draft_model: nnx.Module | None = None) -> NotFinite:
    """The error, which names the first damaged weight, or an overflow if no weight is damaged."""
    models = {"target": target} if draft_model is None else {"target": target, "drafter": draft_model}
    for model, module in models.items():
        if found := _damaged_weight(module):
            name, dtype, value, where = found
            advice = "fetch the checkpoint again"
            if dtype == jnp.float16:
                advice += f", or load the {model} as float32 or bfloat16, whose numbers reach further"
            return NotFinite(
                f"the {model}'s weight {name} holds a number that is not finite, {value} at {where}: {advice}"
            )
    dtype = next(iter(named_params(target).values())).dtype
    whose = " or ".join(f"the {model}'s" for model in models)
    return NotFinite(
        f"{whose} numbers are not finite in {dtype}, and the weights are: they overflow; load as float32 or bfloat16"
    )


def _damaged_weight(module: nnx.Module) -> tuple[str, np.dtype, jax.Array, list[int]] | None:
    """Name, dtype, value and place of the first number that is not finite, of what a checkpoint holds."""
    for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):  # a twin has other arrays, computed from these
        weight = param[...]
        if not jnp.isfinite(weight).all():
            where = np.argwhere(~np.asarray(jnp.isfinite(weight)))[0].tolist()
            return ".".join(map(str, path)), weight.dtype, weight[tuple(where)], where
    return None
