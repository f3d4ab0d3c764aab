"""What `gemma4-mtp generate --timings` measures: tokens per second of both loops, and the time of each stage alone."""

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

RUNS = 3  # of each loop; no new one starts after RUN_SECONDS
RUN_SECONDS = 2.0
LONGEST_RUN = 5.0  # seconds; a longer run is stopped, and counts up to there

Run = Callable[[OnRound], Any]  # one generation that calls back after each round


class Speed(NamedTuple):
    """The speed of the rounds after the prefill."""

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
        return {
            "speculative": None if self.speculative is None else self.speculative._asdict(),
            "autoregressive": None if self.autoregressive is None else self.autoregressive._asdict(),
            "speed_up": self.speed_up,
            "stage_seconds": self.stages,
        }


class _Enough(Exception):
    """Ends a generation from within its callback."""


def compare(*loops: Run) -> list[Speed | None]:
    """The speed of each loop, without compilation and prefill: the median of a few runs, which alternate between the loops.

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
    """Run until the first round that ends `seconds` or more after the prefill, or to the end."""
    ends: list[float] = []
    emitted: list[int] = []

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
    measured = [speed for speed in speeds if speed is not None]
    if len(measured) < len(speeds):
        return None
    return Speed(*(statistics.median(values) for values in zip(*measured, strict=True)))


STAGES = {"draft": draft_stage, "verify": verify_stage, "accept": accept_stage, "rollback": rollback_stage}


def time_stages(
    target: Gemma4, draft_model: Drafter, prompt: Sequence[int], options: Options, max_new_tokens: int
) -> dict[str, float]:
    """Seconds of each stage after `prompt`, compiled alone and repeated in one call, in the forms that models and options have.

    The cache has the size that a generation of `max_new_tokens` gives it.  A compiled round fuses the stages, so their sum is
    not quite its time.
    """
    state = prefill(target, prompt, options, max_new_tokens=max_new_tokens, key=jax.random.key(0))
    return {name: Timer(stage, target, draft_model, state, options).lap() for name, stage in STAGES.items()}
