"""Hand models to a compiled step without walking their modules at every call.

`jax.jit(step)(target, drafter, state)` flattens both models each time, in Python: 0.6 ms for the shipped pair, as much as
a tenth of a round.  Flattened once, the weights go in as a list.

On CPU two things more, which leave the formulas alone.  XLA hands products of a few rows, such as a verify's, to YNNPACK,
which packs the weights anew at every call; its Eigen products are faster there, but slow against a table that lies the
wrong way round.  So YNNPACK is switched off, and heads are laid out once for all calls.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from decoding.speculative import Options
from decoding.state import DecodeState

Step = Callable[..., DecodeState]  # (*models, state, options) -> state


def compiled(step: Callable, options: Options, *models) -> Callable[[DecodeState], Any]:
    """state -> step(*models, state, options), jitted, with the state donated.  Compiled once per models' structure."""
    weights, structure = jax.tree.flatten(laid_out(*models))
    run = _jitted(step, options, structure)
    return lambda state: run(weights, state)


def laid_out(*models):
    """The models as a round gets them: on CPU with their heads laid out."""
    return tuple(model.for_cpu() for model in models) if jax.default_backend() == "cpu" else models


@functools.lru_cache(maxsize=64)
def _jitted(step: Callable, options: Options, structure: jax.tree_util.PyTreeDef) -> Callable:
    def run(weights, state):
        return step(*jax.tree.unflatten(structure, weights), state, options)

    return jax.jit(run, donate_argnames="state", compiler_options=compiler_options())


@functools.cache
def compiler_options() -> dict[str, str]:
    if jax.default_backend() != "cpu":
        return {}
    without_ynnpack = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=without_ynnpack).lower().compile()
    except jax.errors.JaxRuntimeError:  # a version of XLA that has no such switch
        return {}
    return without_ynnpack
