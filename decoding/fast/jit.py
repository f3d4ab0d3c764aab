"""Jitted rounds that do not walk the models' modules at every call.

`jax.jit(step)(target, draft_model, state)` flattens both models at every call, in Python: half a millisecond for the shipped
pair.  Here they are flattened once, and the weights go in as a list; so are the options, whose numbers go to the device once.

A program is compiled for each structure of models and options (a draft length, greedy or sampled, with top-k, with top-p, the
acceptance, the kinds of processors, logprobs) and for each size of the state (rows, and the cache's capacity, which doubles).
Values compile nothing.  The programs least recently used are dropped: MAX_PROGRAMS are kept, and their code takes at most
that many times the size of one.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from decoding.options import Options
from decoding.state import DecodeState

MAX_PROGRAMS = 64  # beside those of the generation that is running
_kept: OrderedDict[Any, Any] = OrderedDict()  # jitted functions by what they were made for, each with its programs
_lock = threading.Lock()  # the parts of a batch ask for their programs in threads of their own
RoundFn = Callable[..., DecodeState]  # (*models, state, options) -> state


def jit_flat(function: Callable, options: Options, *models: nnx.Module) -> Callable[[Any], Any]:
    """state -> function(*models, state, options), jitted, with the state donated.

    Compiled once for each structure of models and options: their numbers are arguments.  At most MAX_PROGRAMS stay compiled.
    """
    arrays, structure = jax.tree.flatten((models, options))
    # Not those of the models: over several processes their parts cannot be put again.
    arrays = [array if isinstance(array, jax.Array) else jax.device_put(array) for array in arrays]
    run = _jitted(function, structure)
    return lambda state: run(arrays, state)


def _jitted(function: Callable, structure: Any) -> Callable:
    with _lock:
        run = _kept.pop((function, structure), None) or _jit(function, structure)
        _kept[function, structure] = run  # the most recent one is the last
        for key, oldest in list(_kept.items())[:-1]:
            if sum(kept._cache_size() for kept in _kept.values()) < MAX_PROGRAMS:
                break
            oldest.clear_cache()
            del _kept[key]
    return run


def _jit(function: Callable, structure: Any) -> Any:
    def run(arrays: list[jax.Array], state: Any) -> Any:
        models, options = jax.tree.unflatten(structure, arrays)
        return function(*models, state, options)

    return jax.jit(run, donate_argnames="state")
