"""Jitted rounds that do not walk the models' modules at every call.

`jax.jit(step)(target, draft_model, state)` flattens both models at every call, in Python: half a millisecond for the shipped
pair.  Here they are flattened once, and the weights go in as a list; so are the options, whose numbers go to the device once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from decoding.options import Options
from decoding.state import DecodeState

RoundFn = Callable[..., DecodeState]  # (*models, state, options) -> state


def jit_flat(function: Callable, options: Options, *models: nnx.Module) -> Callable[[Any], Any]:
    """state -> function(*models, state, options), jitted, with the state donated.

    Compiled once for each structure of models and options: their numbers are arguments.
    """
    arrays, structure = jax.tree.flatten((models, options))
    # Not those of the models: over several processes their parts cannot be put again.
    arrays = [array if isinstance(array, jax.Array) else jax.device_put(array) for array in arrays]
    run = _jitted(function, structure)
    return lambda state: run(arrays, state)


@functools.lru_cache(maxsize=64)
def _jitted(function: Callable, structure: Any) -> Callable:
    def run(arrays: list[jax.Array], state: Any) -> Any:
        models, options = jax.tree.unflatten(structure, arrays)
        return function(*models, state, options)

    return jax.jit(run, donate_argnames="state")
