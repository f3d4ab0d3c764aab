"""A batch split over several threads, each of which runs all rounds of its rows in one call.

On CPU one program leaves cores idle: between two products it has small operations that run on one core, and few rows make small
products.  Two programs of half the rows each fill two cores.  But each reads all weights, so this pays only while reading them
is not what takes the time: for a small model, or many rows.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np

from decoding.fast.jit import RoundFn
from decoding.fast.round_loop import prefill_round, rounds_on_device
from decoding.options import Options
from decoding.sampling import has_key_per_row
from decoding.state import DecodeState, Round
from drafter import Drafter
from gemma4 import Gemma4

T = TypeVar("T")


def rounds_in_threads(
    state: DecodeState, round_fn: RoundFn, options: Options, target: Gemma4, *draft_model: Drafter, threads: int
) -> Iterator[Round]:
    """As `rounds_on_device`, over `threads` threads.  Finished rows emit nothing until all rows are done."""
    last, _ = prefill_round(state, target)
    yield last
    loops = [rounds_on_device(part, round_fn, options, target, *draft_model) for part in split_rows(state, threads)]
    logs = run_in_threads([functools.partial(list, loop) for loop in loops])
    at_rest = [jax.tree.map(np.zeros_like, prefill) for prefill, *_ in logs]
    for rounds in itertools.zip_longest(*(log[1:] for log in logs)):
        parts = [last or resting for last, resting in zip(rounds, at_rest, strict=True)]
        yield jax.tree.map(lambda *values: np.concatenate(values), *parts)


@functools.partial(jax.jit, static_argnames="parts")
def split_rows(state: DecodeState, parts: int) -> list[DecodeState]:
    """The rows in order, in as many parts of nearly equal size; one row each if there are no more.

    Each part has a key of its own (its rows' keys, if they have some): with the same one, its rows would draw the same random
    numbers as another's.
    """
    rows = np.array_split(np.arange(state.token.shape[0]), min(parts, state.token.shape[0]))
    if len(rows) == 1:
        return [state]
    without_key = state._replace(key=None)
    if has_key_per_row(state.key):
        keys = [state.key[part[0] : part[-1] + 1] for part in rows]
    else:
        keys = list(jax.random.split(state.key, len(rows)))
    return [
        jax.tree.map(lambda leaf, part=part: leaf[part[0] : part[-1] + 1], without_key)._replace(key=key)
        for part, key in zip(rows, keys, strict=True)
    ]


def run_in_threads(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The result of each call, all of them running at the same time."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))
