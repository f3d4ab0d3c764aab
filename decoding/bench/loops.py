"""Whole generations, timed after their prefill: tokens per second, and tokens per round."""

import functools
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from decoding import fast
from decoding.baseline import autoregressive_round
from decoding.bench.cost import simulated
from decoding.bench.subject import Subject
from decoding.fast.jit import RoundFn
from decoding.generation import collect
from decoding.options import Options
from decoding.round import speculative_round
from decoding.stages.prefill import prefill
from decoding.state import Round


class Lap(NamedTuple):
    """One generation after the prefill's token."""

    seconds: float
    tokens: int  # of all rows
    rounds: int  # of all rows: each counts those in which it emits something
    iterations: int  # of the loop: the rounds of the row that takes the most
    reached: list[float]  # share of rounds that accepted the first 1, 2, ... drafts

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Loop(NamedTuple):
    """One way to continue prompts: which round, and which loop of `decoding.fast` runs it."""

    subject: Subject  # with its twins
    new_tokens: int
    options: Options  # draft_length 0: autoregressive
    on_device: bool  # else streamed
    accept_rate: float | None = None  # simulated
    threads: int = 1  # more only on the device

    def lap(self, prompts: list[list[int]], seed: int = 0) -> Lap:
        """seed: of what is sampled or simulated.  Errors: ValueError if the prompts do not fit the context."""
        subject, options, key = self.subject, self.options, jax.random.key(seed)
        state = prefill(
            subject.target, prompts, options, max_new_tokens=self.new_tokens, key=key, cache_room=fast.FIRST_ROOM
        )
        jax.block_until_ready(state)
        models = (subject.target, subject.draft_model) if options.draft_length else (subject.target,)
        run = fast.run("on_device" if self.on_device else "streamed", self.threads)
        loop = run(state, self._round_fn(), options, *models)
        first = next(loop)  # `generate` does what comes before it while the prefill still runs
        began = time.perf_counter()
        rounds: list[Round] = []
        stats = collect(itertools.chain([first], loop), rounds.append).stats
        seconds = time.perf_counter() - began
        tokens = stats.emitted - stats.prompts
        return Lap(seconds, tokens, stats.rounds, len(rounds) - 1, stats.acceptance_per_position)

    def _round_fn(self) -> RoundFn:
        if not self.options.draft_length:
            return autoregressive_round
        return speculative_round if self.accept_rate is None else _simulated_round(self.accept_rate)


@functools.lru_cache
def _simulated_round(rate: float) -> RoundFn:
    return functools.partial(speculative_round, accept_fn=simulated(rate))


def typical(laps: list[list[Lap]]) -> Lap:
    """Repeated laps over the same prompts (outer list: prompts) as one lap over all prompts: median seconds, all tokens."""
    firsts = [repeats[0] for repeats in laps]
    rounds = sum(lap.rounds for lap in firsts)
    reached = [
        sum(share * lap.rounds for share, lap in zip(shares, firsts, strict=True)) / rounds
        for shares in zip(*(lap.reached for lap in firsts), strict=True)
    ]
    seconds = sum(statistics.median(lap.seconds for lap in repeats) for repeats in laps)
    return Lap(seconds, sum(lap.tokens for lap in firsts), rounds, sum(lap.iterations for lap in firsts), reached)


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third quartile, which show how much repeated measurements vary; of one value, that value twice."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
