"""How fast: tokens a second of either loop, and the time of each stage on its own.  For people, not for tests."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from decoding.bench.stages import Timer, accept_stage, draft_stage, rollback_stage, verify_stage
from decoding.generation import OnRound
from decoding.options import Options
from decoding.stages.prefill import prefill
from decoding.state import Round
from drafter import Drafter
from gemma4 import Gemma4

RUNS = 3  # of each loop, while they are short: no new one starts after RUN_SECONDS
RUN_SECONDS = 2.0
LONGEST_RUN = 5.0  # seconds; a longer one is stopped and counts as far as it came

Run = Callable[[OnRound], Any]  # one generation that calls back after each round


class Speed(NamedTuple):
    """Of the rounds after the prefill."""

    tokens_per_second: float
    seconds_per_round: float


class Figures(NamedTuple):
    """What was measured; None where there was nothing to measure."""

    autoregressive: Speed | None
    speculative: Speed | None = None
    stages: dict[str, float] | None = None  # seconds

    @property
    def speed_up(self) -> float | None:
        if self.speculative is None or self.autoregressive is None:
            return None
        return self.speculative.tokens_per_second / self.autoregressive.tokens_per_second

    def as_dict(self) -> dict:
        as_dict = lambda speed: None if speed is None else speed._asdict()
        return {
            "speculative": as_dict(self.speculative),
            "autoregressive": as_dict(self.autoregressive),
            "speed_up": self.speed_up,
            "stage_seconds": self.stages,
        }


class _Enough(Exception):
    pass


def compare(*loops: Run) -> list[Speed | None]:
    """The speed of each loop, compilation and prefill left out: the median of a few runs, taken in turn.

    None for a loop that ends with its prefill.
    """
    for run in loops:
        _time_rounds(run, seconds=0.0)  # compiles
    began, speeds = time.perf_counter(), [[] for _ in loops]
    for _ in range(RUNS):
        for run, results in zip(loops, speeds, strict=True):
            results.append(_time_rounds(run, LONGEST_RUN))
        if time.perf_counter() - began > RUN_SECONDS:
            break
    return [_median(results) for results in speeds]


def _time_rounds(run: Run, seconds: float) -> Speed | None:
    """Run until the first round that ends `seconds` after the prefill, or to the end."""
    ends, emitted = [], []

    def on_round(last: Round) -> None:
        ends.append(time.perf_counter())
        emitted.append(int(last.num_emitted.sum()))
        if len(ends) > 1 and ends[-1] - ends[0] >= seconds:
            raise _Enough

    with contextlib.suppress(_Enough):
        run(on_round)
    if len(ends) < 2:
        return None
    elapsed = ends[-1] - ends[0]
    return Speed(sum(emitted[1:]) / elapsed, elapsed / (len(ends) - 1))


def _median(speeds: list[Speed | None]) -> Speed | None:
    if None in speeds:
        return None
    return Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))


STAGES = {"draft": draft_stage, "verify": verify_stage, "accept": accept_stage, "rollback": rollback_stage}


def time_stages(
    target: Gemma4, draft_model: Drafter, prompt: Sequence[int], options: Options, max_new_tokens: int
) -> dict[str, float]:
    """Seconds of each stage after `prompt`, compiled on its own and repeated in one call.

    The cache has the size that a generation of `max_new_tokens` gives it.  One compiled round fuses the stages, so
    their sum is not quite its time.
    """
    state = prefill(target, prompt, max_new_tokens, options, jax.random.key(0))
    return {name: Timer(stage, target, draft_model, state, options).lap() for name, stage in STAGES.items()}
