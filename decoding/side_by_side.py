"""A batch dealt to several threads, each of which runs all rounds of its rows in a call of its own.

On CPU one program leaves cores idle: between two products it has small operations that run on one core, and few rows make small
products.  Two programs of half the rows, side by side, fill two cores.  But each reads all weights, so that this pays only
while reading them is not what takes the time: for a small model, or many rows.  And only where a call runs all rounds: threads
that wait for each other round by round gained nothing.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np

from decoding.compiled import Step
from decoding.loops import rounds_on_device
from decoding.speculative import Options
from decoding.state import DecodeState, Round

T = TypeVar("T")


def rounds_side_by_side(state: DecodeState, step: Step, options: Options, *models, threads: int) -> Iterator[Round]:
    """As `rounds_on_device`, dealt to `threads` threads.  A row that ended stands still until all have."""
    yield jax.device_get(state.last)
    loops = [rounds_on_device(part, step, options, *models) for part in deal(state, threads)]
    logs = at_once([functools.partial(list, loop) for loop in loops])
    at_rest = [jax.tree.map(np.zeros_like, prefill) for prefill, *_ in logs]
    for rounds in itertools.zip_longest(*(log[1:] for log in logs)):
        now = [last or still for last, still in zip(rounds, at_rest, strict=True)]
        yield jax.tree.map(lambda *parts: np.concatenate(parts), *now)


@functools.partial(jax.jit, static_argnames="parts")
def deal(state: DecodeState, parts: int) -> list[DecodeState]:
    """Its rows in order, in as many parts of nearly one size; one row each if there are no more.

    Each part has a key of its own: with the same one, its rows would draw the same random numbers as another's.
    """
    rows = np.array_split(np.arange(state.token.shape[0]), min(parts, state.token.shape[0]))
    if len(rows) == 1:
        return [state]
    without_key = state._replace(key=None)
    return [
        jax.tree.map(lambda leaf, part=part: leaf[part[0] : part[-1] + 1], without_key)._replace(key=key)
        for part, key in zip(rows, jax.random.split(state.key, len(rows)), strict=True)
    ]


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each call returns, all of them running at the same time."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))
