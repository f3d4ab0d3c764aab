"""Jitted rounds that do not walk the models' modules at every call.

`jax.jit(step)(target, draft_model, state)` flattens both models at every call, in Python: half a millisecond for the shipped
pair.  Here they are flattened once, and the weights go in as a list.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from decoding.options import Options
from decoding.state import DecodeState
from gemma4.fast import this_backend

RoundFn = Callable[..., DecodeState]  # (*models, state, options) -> state


def jit_flat(function: Callable, options: Options, *models: nnx.Module) -> Callable[[Any], Any]:
    """state -> function(*models, state, options), jitted, with the state donated.  Compiled once per structure of models."""
    weights, structure = jax.tree.flatten(models)
    run = _jitted(function, options, structure)
    return lambda state: run(weights, state)


@functools.lru_cache(maxsize=64)
def _jitted(function: Callable, options: Options, structure: Any) -> Callable:
    def run(weights: list[jax.Array], state: Any) -> Any:
        return function(*jax.tree.unflatten(structure, weights), state, options)

    return jax.jit(run, donate_argnames="state", compiler_options=compiler_options())


@functools.cache
def compiler_options(backend: str | None = None) -> dict[str, str]:
    """On CPU, XLA's products without YNNPACK, which repacks the weights at every call for products of a few rows."""
    if (backend or this_backend()) != "cpu":
        return {}
    without_ynnpack = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=without_ynnpack).lower().compile()
    except jax.errors.JaxRuntimeError:  # a version of XLA that does not know the option
        return {}
    return without_ynnpack
