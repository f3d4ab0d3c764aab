"""The loop over rounds, twice: a few rounds a call, so that the host sees them as they end; or one call for all of them.

Both yield the same rounds, and are the same program: rounds until every row is done, or until as many ran as the call may run.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from decoding.compiled import Step, compiled
from decoding.speculative import Options
from decoding.state import DecodeState, Round

BLINK = 0.025  # seconds for which the host's loop may hold back a round
MOST = 8  # rounds in a call of the host's loop


class Report(NamedTuple):
    """What a call did, to be read after the state is donated to the next one."""

    log: Round  # of each round, stacked
    count: Int[Array, ""]  # how many rounds ran; what `log` holds beyond them has no meaning
    done: Bool[Array, " b"]


def rounds(state: DecodeState, step: Step, options: Options, *models) -> Iterator[Round]:
    """Run `step` until every row is done; yield the prefill's round, then each round as it ends, on the host.

    A call runs one round, or as many as pass within a BLINK: what a call costs the host, half a millisecond, or two where
    other machines want the same processor, is then spread over them.  The next call starts before the one before it is read,
    so that the device always has work.
    """
    run = compiled(_rounds(step, MOST), options, *models)
    last, done = jax.device_get((state.last, state.done))
    yield last
    if done.all():
        return
    most = 1
    state, report = run((state, np.int32(most)))
    while not done.all():
        began = time.perf_counter()
        state, next_report = run((state, np.int32(most)))
        ended, done = _read(report)
        yield from ended
        seconds = time.perf_counter() - began  # what was done with the rounds included: who is slow gets them singly
        most = MOST if seconds * MOST <= BLINK * len(ended) else max(int(BLINK * len(ended) / seconds), 1)
        report = next_report


def rounds_on_device(state: DecodeState, step: Step, options: Options, *models) -> Iterator[Round]:
    """The same rounds, by one call that returns when every row is done."""
    most = -(-int(state.budget.max()) // 128) * 128  # a round emits a token at least; few sizes mean few compilations
    run = compiled(_rounds(step, most), options, *models)
    yield jax.device_get(state.last)
    _, report = run((state, np.int32(most)))
    yield from _read(report)[0]


def _read(report: Report) -> tuple[list[Round], np.ndarray]:
    """The rounds that ran, and which rows are done; waits for them."""
    log, count, done = jax.device_get(report)
    return [Round(*(values[i] for values in log)) for i in range(count)], done


@functools.lru_cache(maxsize=64)
def _rounds(step: Step, room: int) -> Callable[..., tuple[DecodeState, Report]]:
    """(*models, (state, most), options) -> the state after at most `most` rounds, up to `room`, and what they did.

    A call ahead of the end finds all rows done: it returns at once, where a forward of a large model would not.
    """

    def run(*args):
        *models, (state, most), options = args

        def is_due(carry):
            state, _, count = carry
            return (count < most) & ~state.done.all()

        def one_round(carry):
            state, log, count = carry
            state = step(*models, state, options)
            return state, jax.tree.map(lambda rows, row: rows.at[count].set(row), log, state.last), count + 1

        log = jax.tree.map(lambda row: jnp.zeros((room, *row.shape), row.dtype), state.last)
        # A loop, even for one round: XLA would copy the cache into and out of the branches of a `cond`.
        state, log, count = jax.lax.while_loop(is_due, one_round, (state, log, jnp.int32(0)))
        return state, Report(log, count, state.done)

    return run
