"""Linear maps for training: one matrix product over all tokens, whose gradient XLA computes twice as fast on CPU."""

from typing import TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from gemma4.fast.twin import twin_of
from gemma4.layers import Linear

Module = TypeVar("Module", bound=nnx.Module)


class FlatLinear(Linear):
    """A twin of `layers.Linear`."""

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def for_training(model: Module) -> Module:
    """The same model, a target or a drafter, with `FlatLinear` in place of each `Linear`.  To be trained, and saved."""

    def is_linear(module: object) -> bool:
        return isinstance(module, Linear)

    return jax.tree.map(lambda leaf: twin_of(leaf, FlatLinear) if is_linear(leaf) else leaf, model, is_leaf=is_linear)
