"""Speeds are without prefill and compilation; long runs are stopped early."""

import numpy as np
import pytest

import decoding
from decoding import Options, Round
from decoding.bench import generate_timing, stages
from decoding.bench.generate_timing import Figures, Speed, compare, time_stages
from decoding.bench.stages import Timer


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(generate_timing.time, "perf_counter", clock.perf_counter)
    return clock


def loop(clock: Clock, rounds: list[tuple[float, int]], calls: list[str], name: str = "loop"):
    """A loop whose rounds take these seconds and emit so many tokens.  Its very first round compiles."""

    def run(on_round):
        for number, (seconds, emitted) in enumerate(rounds):
            clock.now += seconds + (100 if number == 1 and name not in calls else 0)
            if number == 1:
                calls.append(name)
            on_round(Round(np.zeros((1, 0)), np.zeros(1), np.zeros((1, 1)), np.array([emitted])))

    return run


def test_speed_of_the_rounds_after_the_prefill(clock):
    calls = []
    speeds = compare(
        loop(clock, [(9.0, 1), (0.1, 4), (0.1, 2)], calls, "a"), loop(clock, [(9.0, 1), (0.5, 1)], calls, "b")
    )
    assert speeds[0] == pytest.approx(Speed(30.0, 0.1)) and speeds[1] == pytest.approx(Speed(2.0, 0.5))
    assert calls == ["a", "b", "a", "b"], "once to compile, then alternately while time is left"


def test_short_loops_run_three_times(clock):
    calls = []
    compare(loop(clock, [(0.0, 1), (0.01, 1)], calls))
    assert len(calls) == 1 + generate_timing.RUNS


def test_long_loop_is_stopped_early(clock):
    calls = []
    (speed,) = compare(loop(clock, [(0.0, 1), *[(2.0, 3)] * 1000], calls))
    assert speed == pytest.approx(Speed(1.5, 2.0))
    assert clock.now == (100 + 2) + 3 * 2, "a round to compile; then as many as LONGEST_RUN needs, and no second run"


def test_text_of_one_token_has_no_speed(clock):
    assert compare(loop(clock, [(1.0, 1)], []), loop(clock, [(1.0, 1), (1.0, 1)], [])) == [None, Speed(1.0, 1.0)]


def test_figures():
    figures = Figures(Speed(100.0, 0.01), Speed(250.0, 0.016), {"draft": 0.002})
    assert figures.as_dict() == {
        "speculative": {"tokens_per_second": 250.0, "seconds_per_round": 0.016},
        "autoregressive": {"tokens_per_second": 100.0, "seconds_per_round": 0.01},
        "speed_up": 2.5,
        "stage_seconds": {"draft": 0.002},
    }
    assert Figures(Speed(100.0, 0.01)).speed_up is Figures(None, Speed(1.0, 1.0)).speed_up is None


def test_every_stage_is_timed(pair_dir, monkeypatch):
    target, draft_model, _ = decoding.load_pair(pair_dir / "target", pair_dir / "drafter")
    made = []

    class Watched(Timer):
        def __init__(self, stage, *args):
            made.append((stage, args[-1]))
            super().__init__(stage, *args)

    monkeypatch.setattr(generate_timing, "Timer", Watched)
    monkeypatch.setattr(stages, "LAP_SECONDS", 0.001)
    options = Options(2, eos_ids=(1,))
    seconds = time_stages(target, draft_model, [2, 5, 7], options, max_new_tokens=12)
    assert all(s > 0 for s in seconds.values())
    names = ["draft", "verify", "accept", "rollback"]
    assert list(seconds) == names and made == [(getattr(stages, f"{name}_stage"), options) for name in names]
