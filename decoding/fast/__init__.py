"""The same tokens sooner: loops and forms of functions that suit a machine.  Nothing here is needed to understand decoding.

    round_loop.py    several rounds a call, or all of them
    auto_rounds.py   rounds whose draft length changes
    threads.py       a batch split over threads
    jit.py           calls that do not walk the models' modules
    top_k_top_p.py   top-k and top-p without sorting
    inverse_cdf.py   a token from a distribution over a large vocabulary, in two levels

`tests/fast` holds each loop and each function against the plain one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import overload

import drafter.fast
import gemma4.fast
from decoding.fast.auto_rounds import rounds_of_chosen_lengths
from decoding.fast.inverse_cdf import sample_from
from decoding.fast.round_loop import rounds_on_device, rounds_streamed
from decoding.fast.threads import rounds_in_threads
from decoding.fast.top_k_top_p import top_k_mask, top_p_mask
from decoding.options import Options, whole_number
from decoding.sampling import Kernels
from decoding.state import Round
from drafter import Drafter
from gemma4 import Gemma4
from gemma4.fast.argmax import argmax
from gemma4.sharding import mesh_of

__all__ = ["KERNELS", "LOOPS", "check_threads", "for_backend", "rounds_of_chosen_lengths", "run", "with_kernels"]
KERNELS = Kernels(argmax, top_k_mask, top_p_mask, sample_from)
LOOPS = ("streamed", "on_device")
FIRST_ROOM = 64  # new tokens that a cache has room for at first; it grows


@overload
def for_backend(model: Gemma4, backend: str | None = None) -> Gemma4: ...
@overload
def for_backend(model: Drafter, backend: str | None = None) -> Drafter: ...
def for_backend(model: Gemma4 | Drafter, backend: str | None = None) -> Gemma4 | Drafter:
    """The same model with the twins that suit `backend` (that on which JAX runs, unless given)."""
    if isinstance(model, Drafter):
        return drafter.fast.for_backend(model, backend)
    return gemma4.fast.for_backend(model, backend)


def with_kernels(options: Options) -> Options:
    """The same options with the functions of this folder."""
    return dataclasses.replace(options, kernels=KERNELS)


def run(loop: str, threads: int = 1) -> Callable[..., Iterator[Round]]:
    """(state, round_fn, options, *models) -> rounds, the prefill's first.  `loop` is one of LOOPS."""
    if threads > 1:
        return functools.partial(rounds_in_threads, threads=threads)
    return {"streamed": rounds_streamed, "on_device": rounds_on_device}[loop]


def check_threads(threads: object, loop: str, target: Gemma4) -> None:
    """Errors: ValueError unless `threads` is 1, or all rounds run in one call on a single device."""
    count = whole_number("threads", threads, least=1)
    if count == 1:
        return
    if loop != "on_device":
        raise ValueError(f'threads: {count} threads need loop="on_device", got loop={loop!r}')
    mesh = mesh_of(target.embed_tokens.weight[...])
    if mesh is not None and mesh.size > 1:  # devices would wait for each other, each in another order
        raise ValueError(f"threads: expected 1 for a target that is split over several devices, got {count}")
