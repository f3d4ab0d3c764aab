"""Streamed rounds whose draft length changes from call to call, as `decoding/draft_length.py` chooses it.

Each length has a program of its own, compiled when it is first tried.  A state fits all of them: its rings have room for the
longest draft, and only the record of the last round, which no round reads, has another shape.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoding.baseline import autoregressive_round
from decoding.draft_length import DraftLengths
from decoding.fast.jit import jit_flat
from decoding.fast.round_loop import (
    MAX_DELAY_SECONDS,
    MAX_ROUNDS_PER_CALL,
    RoundLog,
    _read,
    _rounds,
    capacity_of,
    prefill_round,
    resized,
)
from decoding.options import Options
from decoding.round import speculative_round
from decoding.state import DecodeState, Round
from drafter import Drafter
from gemma4 import Gemma4


def rounds_of_chosen_lengths(
    state: DecodeState, options: Options, target: Gemma4, draft_model: Drafter, lengths: DraftLengths
) -> Iterator[Round]:
    """As `rounds_streamed`, each call with the length that `lengths` chooses.  Rounds have as many drafts as they drafted."""
    config, writes = target.config, lengths.longest + 1
    programs: dict[int, Callable] = {}
    compiled: set[tuple[int, int]] = set()  # length and capacity

    def program(length: int) -> Callable:
        if length not in programs:
            round_fn, models = (
                (speculative_round, (target, draft_model)) if length else (autoregressive_round, (target,))
            )
            of_length = dataclasses.replace(options, draft_length=length)
            programs[length] = jit_flat(_rounds(round_fn, MAX_ROUNDS_PER_CALL), of_length, *models)
        return programs[length]

    def call(state: DecodeState) -> tuple[DecodeState, Call]:
        """Start the next rounds."""
        length, limit = lengths.choose()
        if limit is None:
            seconds = lengths.seconds_of(length)
            limit = max(1, min(MAX_ROUNDS_PER_CALL, int(MAX_DELAY_SECONDS / seconds)))
        key = (length, capacity_of(state.cache, config))
        is_new = key not in compiled
        compiled.add(key)
        state, log = program(length)((with_last(state, length), np.int32(limit)))
        return state, Call(length, log, is_new, time.perf_counter())

    last, done = prefill_round(state, target)
    yield last
    if done.all():
        return
    state, running = call(resized(state, config, capacity_of(state.cache, config), writes))
    ended = time.perf_counter()
    while not done.all():
        state, following = call(state)
        rounds, done, is_full = _read(running.log, target)
        began, ended = max(ended, running.started), time.perf_counter()
        for last in rounds:
            lengths.saw(running.length, last.num_accepted[last.num_emitted > 0].tolist())
        # The host waits for a compilation; meanwhile the call before it has ended, nobody knows when.
        if rounds and not following.is_new:
            lengths.took(running.length, (ended - began) / len(rounds))
        yield from rounds
        if is_full and not done.all():  # the call under way runs no round, unless its rounds are shorter
            late, _, _ = _read(following.log, target)
            yield from late
            state, following = call(resized(state, config, 2 * capacity_of(state.cache, config), writes))
        running = following


@dataclasses.dataclass(frozen=True)
class Call:
    """Rounds that were started.  is_new: for which something was compiled."""

    length: int
    log: RoundLog
    is_new: bool
    started: float


def with_last(state: DecodeState, length: int) -> DecodeState:
    """The same state, with room for the record of a round of `length`; no round reads that of the one before."""
    rows = state.token.shape[0]

    def room(tokens: int, like: Any) -> Any:
        return None if like is None else jnp.zeros((rows, tokens), like.dtype)

    last = state.last
    if last.tokens.shape[1] == length + 1:
        return state
    return state._replace(
        last=last._replace(
            draft_tokens=room(length, last.draft_tokens),
            tokens=room(length + 1, last.tokens),
            logprobs=room(length + 1, last.logprobs),
        )
    )
