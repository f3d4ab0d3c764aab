"""Rounds in few calls: several a call while they are short, or all of them in one.

Both are one program: rounds until every row is done, or until as many ran as the call may run.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from decoding.fast.jit import RoundFn, jit_flat
from decoding.options import Options
from decoding.state import DecodeState, Round

MAX_DELAY_SECONDS = 0.025  # for which a streamed round may be held back
MAX_ROUNDS_PER_CALL = 8  # when streamed


Carry = tuple[DecodeState, Round, jax.Array]  # the state, the rounds so far, how many


class RoundLog(NamedTuple):
    """What a call did, readable after the state is donated to the next call."""

    rounds: Round  # every round, stacked
    count: Int[Array, ""]  # how many rounds ran; what `rounds` holds beyond them has no meaning
    done: Bool[Array, " b"]


def rounds_streamed(state: DecodeState, round_fn: RoundFn, options: Options, *models: nnx.Module) -> Iterator[Round]:
    """As `generation.speculative_rounds`, but several rounds run in a call if they are short (25 ms together at most).

    That amortises the cost of a call, about a millisecond.  The next call starts before the results of the one before it are
    read, so that the device always has work.
    """
    run = jit_flat(_rounds(round_fn, MAX_ROUNDS_PER_CALL), options, *models)
    last, done = jax.device_get((state.last, state.done))
    yield last
    if done.all():
        return
    limit = 1
    state, log = run((state, np.int32(limit)))
    while not done.all():
        began = time.perf_counter()
        state, next_log = run((state, np.int32(limit)))
        rounds, done = _read(log)
        yield from rounds
        # Includes what the caller does with the rounds: a slow caller gets them one by one.
        seconds_per_round = (time.perf_counter() - began) / len(rounds)
        limit = max(1, min(MAX_ROUNDS_PER_CALL, int(MAX_DELAY_SECONDS / seconds_per_round)))
        log = next_log


def rounds_on_device(state: DecodeState, round_fn: RoundFn, options: Options, *models: nnx.Module) -> Iterator[Round]:
    """The same rounds, by one call that returns when every row is done."""
    # A round emits at least one token.  Rounded up, because each size is compiled.
    limit = -(-int(state.budget.max()) // 128) * 128
    run = jit_flat(_rounds(round_fn, limit), options, *models)
    yield jax.device_get(state.last)
    _, log = run((state, np.int32(limit)))
    yield from _read(log)[0]


def _read(log: RoundLog) -> tuple[list[Round], np.ndarray]:
    """The rounds that ran, and which rows are done; waits for them."""
    rounds, count, done = jax.device_get(log)
    return [Round(*(values[i] for values in rounds)) for i in range(count)], done


@functools.lru_cache(maxsize=64)
def _rounds(round_fn: RoundFn, log_size: int) -> Callable[..., tuple[DecodeState, RoundLog]]:
    """(*models, (state, limit), options) -> the state after at most `limit` rounds, up to `log_size`, and what they did.

    A call past the end finds all rows done and returns at once.
    """

    def run(*args: Any) -> tuple[DecodeState, RoundLog]:
        *models, (state, limit), options = args

        def is_due(carry: Carry) -> jax.Array:
            state, _, count = carry
            return (count < limit) & ~state.done.all()

        def one_round(carry: Carry) -> Carry:
            state, log, count = carry
            state = round_fn(*models, state, options)
            return state, jax.tree.map(lambda rows, row: rows.at[count].set(row), log, state.last), count + 1

        log = jax.tree.map(lambda row: jnp.zeros((log_size, *row.shape), row.dtype), state.last)
        # A loop, even for one round: XLA would copy the cache into and out of the branches of a `cond`.
        state, log, count = jax.lax.while_loop(is_due, one_round, (state, log, jnp.int32(0)))
        return state, RoundLog(log, count, state.done)

    return run
