"""Rounds in few calls: several a call while they are short, or all of them in one.

Both are one program: rounds until every row is done, until as many ran as the call may run, or until the cache is full.  A full
cache grows between calls, so that the time of a round follows the length of the text and not the room for more of it.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from decoding.fast.jit import RoundFn, jit_flat
from decoding.finite import not_finite
from decoding.options import Options
from decoding.stages.prefill import ring_chunk
from decoding.state import DecodeState, Round
from drafter import Drafter
from gemma4 import Config, Gemma4, KVCache, init_cache
from gemma4.cache import resize

MAX_DELAY_SECONDS = 0.025  # the aim for how long a streamed round is held back
MAX_ROUNDS_PER_CALL = 8  # when streamed


Carry = tuple[DecodeState, Round, jax.Array]  # the state, the rounds so far, how many


class RoundLog(NamedTuple):
    """What a call did, readable after the state is donated to the next call."""

    rounds: Round  # every round, stacked
    count: Int[Array, ""]  # how many rounds ran; what `rounds` holds beyond them has no meaning
    done: Bool[Array, " b"]
    is_full: Bool[Array, ""]  # the cache has no room for another round
    is_finite: Bool[Array, ""]


def rounds_streamed(
    state: DecodeState, round_fn: RoundFn, options: Options, target: Gemma4, *draft_model: Drafter
) -> Iterator[Round]:
    """As `generation.speculative_rounds`, but several rounds run in a call if they are short (the aim: 25 ms together).

    That amortises the cost of a call, about a millisecond.  The next call starts before the results of the one before it are
    read, so that the device always has work.
    """
    run = jit_flat(_rounds(round_fn, MAX_ROUNDS_PER_CALL), options, target, *draft_model)
    last, done = prefill_round(state, target)
    yield last
    if done.all():
        return
    # All processes must run the same number of rounds, and their clocks differ.
    is_alone, config = jax.process_count() == 1, target.config
    limit = 1 if is_alone else MAX_ROUNDS_PER_CALL
    state, log = run((with_small_rings(state, config), np.int32(limit)))
    while not done.all():
        began = time.perf_counter()
        state, next_log = run((state, np.int32(limit)))
        rounds, done, is_full = _read(log, target, *draft_model)
        yield from rounds
        if is_full and not done.all():  # the call under way runs no round
            state, next_log = run((grown(state, config), np.int32(limit)))
        if rounds and is_alone:
            # Includes what the caller does with the rounds (a slow caller gets them one by one) and, after the cache grew, a
            # compilation.
            seconds_per_round = (time.perf_counter() - began) / len(rounds)
            limit = max(1, min(MAX_ROUNDS_PER_CALL, int(MAX_DELAY_SECONDS / seconds_per_round)))
        log = next_log


def rounds_on_device(
    state: DecodeState, round_fn: RoundFn, options: Options, target: Gemma4, *draft_model: Drafter
) -> Iterator[Round]:
    """The same rounds, by one call for each size of the cache; most texts need one."""
    config = target.config

    def run_for(cache: KVCache) -> Callable[[DecodeState], tuple[DecodeState, RoundLog]]:
        limit = capacity_of(cache, config)  # a round emits at least one token
        run = jit_flat(_rounds(round_fn, limit), options, target, *draft_model)
        return lambda state: run((state, np.int32(limit)))

    run = run_for(state.cache)
    last, done = prefill_round(state, target)
    yield last
    state = with_small_rings(state, config)
    while not done.all():
        state, log = run(state)
        rounds, done, is_full = _read(log, target, *draft_model)
        yield from rounds
        if is_full:
            state = grown(state, config)
            run = run_for(state.cache)


def prefill_round(state: DecodeState, target: Gemma4) -> tuple[Round, np.ndarray]:
    """The prefill's round, and which rows are done.  Errors: as `_read`."""
    last, done, is_finite = jax.device_get((state.last, state.done, state.is_finite))
    if not is_finite.all():
        raise not_finite(target)
    return last, done


def _read(log: RoundLog, target: Gemma4, *draft_model: Drafter) -> tuple[list[Round], np.ndarray, bool]:
    """The rounds that ran, which rows are done, and whether the cache is full; waits for them.

    Errors: NotFinite if the numbers of a model are not finite.
    """
    rounds, count, done, is_full, is_finite = jax.device_get(log)
    if not is_finite:
        raise not_finite(target, *draft_model)
    return [jax.tree.map(lambda values, i=i: values[i], rounds) for i in range(count)], done, bool(is_full)


def with_small_rings(state: DecodeState, config: Config) -> DecodeState:
    """After a prefill in long chunks, sliding layers as small as rounds need them: one size, whatever the prompt."""
    return resized(state, config, capacity_of(state.cache, config))


def grown(state: DecodeState, config: Config) -> DecodeState:
    """The same state in a cache twice as large."""
    return resized(state, config, 2 * capacity_of(state.cache, config))


def with_room(state: DecodeState, config: Config) -> DecodeState:
    """A state whose cache has room for the next round; waits for the state."""
    state = with_small_rings(state, config)
    is_full = int(state.cache.length.max()) + writes_of(state) > capacity_of(state.cache, config)
    return grown(state, config) if is_full else state


def resized(state: DecodeState, config: Config, capacity: int, writes: int | None = None) -> DecodeState:
    """writes: how many tokens a round writes, in sliding layers; as many as the last one unless given."""
    chunk = ring_chunk(writes_of(state) if writes is None else writes)
    sizes = jax.eval_shape(lambda: init_cache(config, 1, capacity, chunk=chunk)).layers
    if all(old.capacity == new.capacity for old, new in zip(state.cache.layers, sizes, strict=True) if old and new):
        return state
    return state._replace(cache=resize(state.cache, config, capacity, chunk=chunk))


def writes_of(state: DecodeState) -> int:
    """How many tokens a round writes: gamma + 1."""
    return state.last.tokens.shape[1]


def capacity_of(cache: KVCache, config: Config) -> int:
    """How many tokens the cache holds: the slots of the full layers, of which every target has one."""
    return min(kv.capacity for layer, kv in enumerate(cache.layers) if kv and not config.is_sliding(layer))


@functools.lru_cache(maxsize=64)
def _rounds(round_fn: RoundFn, log_size: int) -> Callable[..., tuple[DecodeState, RoundLog]]:
    """(*models, (state, limit), options) -> the state after at most `limit` rounds, and what they did.

    `limit` is at most `log_size`: later rounds would run without being logged.  A call past the end finds all rows done and
    returns at once.
    """

    def run(*args: Any) -> tuple[DecodeState, RoundLog]:
        *models, (state, limit), options = args
        capacity, writes = capacity_of(state.cache, models[0].config), writes_of(state)

        def is_full(state: DecodeState) -> jax.Array:
            return state.cache.length.max() + writes > capacity

        def is_due(carry: Carry) -> jax.Array:
            state, _, count = carry
            return (count < limit) & ~state.done.all() & ~is_full(state) & state.is_finite.all()

        def one_round(carry: Carry) -> Carry:
            state, log, count = carry
            state = round_fn(*models, state, options)
            return state, jax.tree.map(lambda rows, row: rows.at[count].set(row), log, state.last), count + 1

        log = jax.tree.map(lambda row: jnp.zeros((log_size, *row.shape), row.dtype), state.last)
        # A loop, even for one round: XLA would copy the cache into and out of the branches of a `cond`.
        state, log, count = jax.lax.while_loop(is_due, one_round, (state, log, jnp.int32(0)))
        return state, RoundLog(log, count, state.done, is_full(state), state.is_finite.all())

    return run
