"""Whole generations, timed after their prefill: tokens a second, and how many tokens a round yields."""

import functools
import itertools
import statistics
import time
from typing import NamedTuple

import jax

from decoding.baseline import autoregressive_round
from decoding.bench.cost import simulated
from decoding.bench.subject import Subject
from decoding.fast.jit import RoundFn
from decoding.generation import collect, loop_of
from decoding.options import Options
from decoding.round import speculative_round
from decoding.stages.prefill import prefill


class Lap(NamedTuple):
    """One generation from the prefill's token on."""

    seconds: float
    tokens: int  # of all rows
    rounds: int  # likewise
    turns: int  # of the loop: rounds of the row that took the most
    reached: list[float]  # share of rounds that accepted the first 1, 2, ... drafts

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Loop(NamedTuple):
    """One way to continue prompts: which step, and who turns it over."""

    subject: Subject
    new_tokens: int
    options: Options  # draft_length 0: autoregressive
    on_device: bool
    accept_rate: float | None = None  # simulated
    threads: int = 1  # on the device alone

    def lap(self, prompts: list[list[int]], seed: int = 0) -> Lap:
        """seed: of what is sampled or simulated.  Errors: ValueError if the prompts do not fit the context."""
        subject, options = self.subject, self.options
        state = prefill(subject.target, prompts, self.new_tokens, options, jax.random.key(seed))
        jax.block_until_ready(state)
        turn = loop_of(self.on_device, self.threads)
        models = (subject.target, subject.draft_model) if options.draft_length else (subject.target,)
        loop = turn(state, self._step(), options, *models)
        first = next(loop)  # what is done by then, `generate` does while the prefill is still under way
        began = time.perf_counter()
        turns = []
        stats = collect(itertools.chain([first], loop), turns.append).stats
        seconds = time.perf_counter() - began
        tokens = stats.emitted - stats.prompts
        return Lap(seconds, tokens, stats.rounds, len(turns) - 1, stats.acceptance_per_position)

    def _step(self) -> RoundFn:
        if not self.options.draft_length:
            return autoregressive_round
        return speculative_round if self.accept_rate is None else _simulated_round(self.accept_rate)


@functools.lru_cache
def _simulated_round(rate: float) -> RoundFn:
    return functools.partial(speculative_round, judge=simulated(rate))


def typical(laps: list[list[Lap]]) -> Lap:
    """Of repeated laps over the same prompts (outer list: prompts), what they make together: median seconds, all tokens."""
    firsts = [repeats[0] for repeats in laps]
    rounds = sum(lap.rounds for lap in firsts)
    reached = [
        sum(share * lap.rounds for share, lap in zip(shares, firsts, strict=True)) / rounds
        for shares in zip(*(lap.reached for lap in firsts), strict=True)
    ]
    seconds = sum(statistics.median(lap.seconds for lap in repeats) for repeats in laps)
    return Lap(seconds, sum(lap.tokens for lap in firsts), rounds, sum(lap.turns for lap in firsts), reached)
