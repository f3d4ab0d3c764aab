"""The measurements behind `bench`: whole loops, and stages next to them."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import decoding
from decoding.bench import loops, machine, measure
from decoding.bench.loops import Lap, Loop, typical
from decoding.bench.measure import Plan
from decoding.bench.work import draft_work, forward_work
from decoding.fast import KERNELS, round_loop, threads
from decoding.fast.jit import jit_flat
from decoding.options import Options
from decoding.stages.prefill import prefill
from drafter.fast import FastDrafter
from gemma4.fast.target import FastGemma4
from tests.models import small_subject

# -- loops -------------------------------------------------------------------------------------------------------------

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("gamma", [0, 3])
def test_lap_counts_what_generate_counts(gamma, on_device):
    subject, seen, how = small_subject(), [], {"max_new_tokens": 21, "on_round": lambda last: seen.append(last)}
    if gamma:
        stats = decoding.generate(subject.target, subject.draft_model, PROMPTS, draft_length=gamma, **how).stats
    else:
        stats = decoding.generate_autoregressive(subject.target, PROMPTS, **how).stats
    lap = Loop(subject.for_backend(), 21, Options(gamma), on_device).lap(PROMPTS)
    assert (lap.tokens, lap.rounds, lap.reached) == (40, stats.rounds, stats.acceptance_per_position)
    assert stats.emitted == 42 and lap.iterations == len(seen) - 1
    assert 0 < lap.seconds and lap.tokens_per_second == lap.tokens / lap.seconds
    if gamma:
        assert max(lap.reached) > 0, "no draft was accepted: nothing is shown"


@pytest.mark.parametrize("on_device", [False, True])
def test_prefill_does_not_count(on_device, monkeypatch):
    """By a clock that a prefill advances by an hour; so does what the host prepares meanwhile."""
    clock = [0.0]

    def slow(run):
        def after_an_hour(*args, **settings):
            clock[0] += 3600
            return run(*args, **settings)

        return after_an_hour

    monkeypatch.setattr(loops, "prefill", slow(prefill))
    monkeypatch.setattr(round_loop, "jit_flat", slow(jit_flat))
    monkeypatch.setattr(loops.time, "perf_counter", lambda: clock.append(clock.pop() + 1) or clock[0])
    assert Loop(small_subject(), 21, Options(3), on_device).lap(PROMPTS).seconds < 3600 < clock[0] / 2


def test_a_lap_is_split_over_threads(monkeypatch):
    """As many calls as threads; their counts add up to those of one call."""
    seen, loop = [], threads.rounds_on_device
    watched = lambda state, *args: seen.append(state.token.shape) or loop(state, *args)
    monkeypatch.setattr(threads, "rounds_on_device", watched)
    one, two = (Loop(small_subject(), 21, Options(3), True, threads=count).lap(PROMPTS) for count in (1, 2))
    assert two._replace(seconds=one.seconds) == one and seen == [(1,), (1,)]


def test_threads_of_the_plan_are_the_loops(nothing_is_measured):
    """Only those on the device; a streamed loop has one."""
    for count in (1, 2):
        batch = measure.Batch(small_subject(), ONE_DRAFT._replace(threads=count), 2)
        assert {on_device: loop.threads for (_, on_device), loop in batch.loops.items()} == {True: count, False: 1}


def test_a_batch_measures_what_generate_runs(monkeypatch):
    """Twins and fast kernels in every loop, prefill and stage; work is that of the models as loaded."""
    made = []

    class Timer(measure.Timer):
        def __init__(self, stage, target, draft_model, state, options, *args):
            made.append((type(target), type(draft_model), options.kernels))

    run, subject = loops.fast.run, small_subject()
    monkeypatch.setattr(measure, "Timer", Timer)
    monkeypatch.setattr(loops.fast, "run", lambda name, threads: made.append((name, threads)) or run(name, threads))
    batch = measure.Batch(subject, ONE_DRAFT._replace(num_prompts=1), 1)
    fast_forms = (FastGemma4, FastDrafter, KERNELS)
    assert made == 2 * [("on_device", 1)] + 2 * [("streamed", 1)] + 6 * [fast_forms]
    for loop in batch.loops.values():
        models = type(loop.subject.target), type(loop.subject.draft_model)
        assert (*models, loop.options.kernels) == fast_forms
    targets, prefill = [], measure.prefill
    monkeypatch.setattr(
        measure,
        "prefill",
        lambda target, *args, **settings: targets.append(target) or prefill(target, *args, **settings),
    )
    monkeypatch.setattr(batch, "timers", {(measure.STEP, 0): SimpleNamespace(lap=lambda: 1.0)})
    monkeypatch.setattr(batch, "loops", {})
    monkeypatch.setattr(batch, "seconds", {(measure.STEP, 0): {}})
    batch.run(0)
    assert list(map(type, targets)) == [FastGemma4] and batch.subject is subject


def test_simulated_loop():
    """Each draft is accepted with the probability asked for, within 4 sigma; the budget ends the last round."""
    rows, new_tokens, gamma, rate = 32, 40, 2, 0.7
    loop = Loop(small_subject(), new_tokens, Options(gamma), on_device=True, accept_rate=rate)
    lap, other = (loop.lap(rows * [[2, 9, 4]], seed=seed) for seed in (0, 1))
    ended_early = rows / lap.rounds
    for drafts, share in enumerate(lap.reached, 1):
        expected = rate**drafts
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / lap.rounds) + ended_early
    assert lap.tokens == rows * (new_tokens - 1)
    assert lap.reached != other.reached, "another seed is another sample"


def test_typical():
    """Two prompts, three laps each: medians of seconds, sums of tokens, shares weighted by rounds."""
    first = [Lap(seconds, 30, 10, 10, [0.8, 0.4]) for seconds in (2.0, 9.0, 1.0)]
    second = [Lap(seconds, 50, 30, 15, [0.4, 0.0]) for seconds in (4.0, 3.0, 5.0)]
    lap = typical([first, second])
    assert lap[:4] == (6.0, 80, 40, 25) and lap.reached == pytest.approx([0.5, 0.1])
    assert lap.tokens_per_second == pytest.approx(80 / 6)
    assert typical([[Lap(1.0, 5, 5, 5, [])]]).reached == []


def test_stage_seconds():
    """A draft is the difference of neighbouring laps."""
    names = measure
    laps = {
        (names.STEP, 0): [1.0, 2.0],
        (names.DRAFT_AND_VERIFY, 2): [9.0, 11.0],
        (names.DRAFT_AND_VERIFY, 3): [21.0, 35.0],
        (names.DRAFT_STEP_AND_VERIFY, 2): [7.5, 9.0],
        (names.VERIFY, 2): [7.0, 8.0],
        (names.VERIFY, 3): [20.0, 30.0],
    }
    assert measure.stage_seconds(laps, 2) == {
        (names.STEP, 0): [1.0, 2.0],
        (names.DRAFT, 2): [2.0, 3.0],
        (names.DRAFT, 3): [1.0, 5.0],
        (names.DRAFT_STEP, 1): [0.5, 1.0],
        (names.VERIFY, 2): [7.0, 8.0],
        (names.VERIFY, 3): [20.0, 30.0],
    }


def test_the_prediction_counts_rows_that_end_early():
    """Two rows of 12 tokens; one takes 4 rounds, the other 8, and the loop runs until that one is done."""
    laps = {
        (0, True): [[Lap(12.0, 24, 24, 12, [])]],
        (2, True): [[Lap(16.0, 24, 12, 8, [0.6, 0.4])]],
    }
    seconds = {
        (measure.STEP, 0): 1.0,
        (measure.DRAFT, 2): 0.5,
        (measure.VERIFY, 2): 1.4,
        (measure.ACCEPT, 2): 0.1,
    }
    plain, drafted = measure.loop_entries(laps, seconds, batch=2)
    assert (plain["seconds_per_round"], drafted["seconds_per_round"]) == (1.0, 2.0)
    assert drafted["tokens_per_round"] == 2.0
    assert drafted["predicted"] == pytest.approx(1.5 * 1.0 / 2.0)
    assert drafted["speed_up"] == pytest.approx(drafted["predicted"])


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """A `Batch` without its measurements: no stage, no loop."""
    monkeypatch.setattr(Loop, "lap", lambda self, group, seed=0: None)
    monkeypatch.setattr(measure, "stage_timers", lambda *args: {})
    monkeypatch.setattr(measure, "stage_seconds", lambda laps, streamed: {})
    monkeypatch.setattr(measure, "loop_entries", lambda *args: [])


NO_MACHINE = machine.Machine("none", 1.0, 1.0)


def run_all(plan: Plan, size: int) -> None:
    batch = measure.Batch(small_subject(), plan, size)
    for run in range(plan.runs):
        batch.run(run)


ONE_DRAFT = Plan(draft_lengths=(1,), streamed=1, prompt_tokens=3, new_tokens=3, num_prompts=2, runs=2)


def test_groups_of_prompts_are_sampled_independently(nothing_is_measured, monkeypatch):
    """All runs of one group have the same seed; another group has another."""
    seeds = []
    monkeypatch.setattr(Loop, "lap", lambda self, group, seed=0: seeds.append(seed))
    run_all(ONE_DRAFT, 1)
    assert seeds == 4 * [0] + 4 * [0] + 2 * (4 * [0] + 4 * [1])  # each group once to compile; four loops


def test_batches_have_the_same_prompts(nothing_is_measured, monkeypatch):
    """Whatever their size; otherwise a comparison would be of texts, not of batches."""
    plan = ONE_DRAFT._replace(batches=(1, 2, 4), num_prompts=8, prompt_tokens=16)
    groups = {batch: [] for batch in plan.batches}
    monkeypatch.setattr(Loop, "lap", lambda self, group, seed=0: groups[len(group)].append(group))
    for batch in plan.batches:
        run_all(plan, batch)
    given = {batch: [prompt for group in of_batch for prompt in group] for batch, of_batch in groups.items()}
    assert {len(prompts) for prompts in given.values()} == {4 * (1 + plan.runs) * 8}
    for prompts in given.values():
        assert {len(prompt) for prompt in prompts} == {16, 15, 14, 13}
        assert sorted(prompts) == sorted(given[1])


def test_stages_alternate_with_loops(nothing_is_measured, monkeypatch):
    """Those of a draft length are next to its loops, each after a prefill, in an order and its reverse; acceptance is apart."""
    happened = []

    class Timer(NamedTuple):
        name: str
        gamma: int

        def lap(self):
            happened.append((self.name, self.gamma))

    monkeypatch.setattr(
        Loop, "lap", lambda self, group, seed=0: happened.append((self.on_device, self.options.draft_length))
    )
    monkeypatch.setattr(measure, "prefilled", lambda subject, plan, group: happened.append(group))
    keys = [(measure.STEP, 0)]
    keys += [(name, gamma) for gamma in (1, 2) for name in (measure.VERIFY, measure.ACCEPT, measure.PRODUCTS)]
    monkeypatch.setattr(measure, "stage_timers", lambda *args: {key: Timer(*key) for key in keys})
    plan = ONE_DRAFT._replace(draft_lengths=(1, 2), streamed=2, num_prompts=3)
    batch = measure.Batch(small_subject(), plan, 1)
    first, second, third = ([prompt] for prompt in plan.prompts(small_subject()))

    def there(group):
        stages = lambda gamma: [group, (measure.VERIFY, gamma), group, (measure.PRODUCTS, gamma)]
        step = [(False, 0), (True, 0), group, (measure.STEP, 0)]
        return [*step, (True, 1), *stages(1), (False, 2), (True, 2), *stages(2)]

    def back(group):
        stages = lambda gamma: [group, (measure.PRODUCTS, gamma), group, (measure.VERIFY, gamma)]
        step = [group, (measure.STEP, 0), (True, 0), (False, 0)]
        return [*stages(2), (True, 2), (False, 2), *stages(1), (True, 1), *step]

    accept = [first, (measure.ACCEPT, 1), first, (measure.ACCEPT, 2)]
    for run, expected in enumerate(
        (there(first) + back(second) + there(third), back(first) + there(second) + back(third))
    ):
        happened.clear()
        batch.run(run)
        assert happened == accept + expected, run


def test_stages_are_repeated_as_often_as_the_loop_iterates(monkeypatch):
    """Except acceptance, which is too short for that.  A verify is next to all laps that it is subtracted from."""
    made = {}

    class Timer(measure.Timer):
        def __init__(self, stage, target, draft_model, state, options, repetitions, threads):
            assert threads == plan.threads
            made.setdefault(options.draft_length, {}).setdefault(repetitions, []).append(stage)

    monkeypatch.setattr(measure, "Timer", Timer)
    iterations = {(0, True): 9, (0, False): 8, (1, True): 7, (3, True): 6, (3, False): 5}
    loops = {key: Lap(1.0, 2, count, count, []) for key, count in iterations.items()}
    plan = Plan(draft_lengths=(1, 3), streamed=3, prompt_tokens=3, new_tokens=3, threads=5)
    found = measure.stage_timers(small_subject(), plan, [[1, 2, 3]], loops)
    of = lambda gamma: {measure.verify_stage, measure.products_stage, measure.draft_and_verify(gamma)}
    assert {key: set(stages) for key, stages in made[1].items()} == {
        9: {measure.autoregressive_stage},
        7: of(1),
        6: {measure.draft_and_verify(3)},  # a draft of one, behind a verify of three
        0: {measure.accept_stage},
    }
    assert {key: set(stages) for key, stages in made[3].items()} == {6: of(3), 0: {measure.accept_stage}}
    order = [name for name, gamma in found if gamma == 3]
    assert order[:3] == [measure.DRAFT_AND_VERIFY, measure.VERIFY, measure.DRAFT_STEP_AND_VERIFY]


def test_times_of_stages(monkeypatch):
    """The median over the runs for each prompt, and the mean of these, as for loops.

    Here each run of the second prompt takes ten times as long as that of the first.
    """
    seconds = iter([1.0, 10.0, 2.0, 20.0, 6.0, 60.0])

    class Timer:
        compile_seconds = 0.5

        def lap(self):
            return next(seconds)

    monkeypatch.setattr(Loop, "lap", lambda self, group, seed=0: Lap(1.0, 3, 2, 2, self.options.draft_length * [0.5]))
    monkeypatch.setattr(measure, "stage_timers", lambda *args: {(measure.STEP, 0): Timer()})
    monkeypatch.setattr(measure, "prefilled", lambda *args: None)
    monkeypatch.setattr(measure, "stage_seconds", lambda laps, streamed: laps)
    monkeypatch.setattr(measure, "loop_entries", lambda laps, seconds, size: seconds)
    plan = ONE_DRAFT._replace(num_prompts=2, runs=3)
    batch = measure.Batch(small_subject(), plan, 1)
    for run in range(plan.runs):
        batch.run(run)
    found = batch.record(NO_MACHINE)
    (entry,) = found["stages"]
    assert found["loops"] == {(measure.STEP, 0): 11.0} and (entry["seconds"], entry["compile_seconds"]) == (11.0, 0.5)
    assert entry["seconds_quartiles"] == [6.5, 15.5]


def test_batches_alternate(nothing_is_measured, monkeypatch):
    """Run by run, because machines change their speed from minute to minute."""
    runs = []
    monkeypatch.setattr(measure.Batch, "run", lambda self, run: runs.append((run, self.size)))
    monkeypatch.setattr(measure, "measure_machine", lambda dtype: NO_MACHINE)
    monkeypatch.setattr(measure, "measure_prefill", lambda *args: {})
    measure.measure(small_subject(), ONE_DRAFT._replace(batches=(1, 2)))
    assert runs == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_work_of_the_stages(nothing_is_measured, monkeypatch):
    """Halfway through the new tokens, for each row: a step reads one token, a verify of three drafts four."""
    subject = small_subject()
    keys = (measure.STEP, 0), (measure.VERIFY, 3), (measure.DRAFT, 3), (measure.DRAFT_STEP, 1)
    monkeypatch.setattr(measure, "stage_seconds", lambda laps, streamed: {key: [1.0] for key in keys})
    plan = Plan(draft_lengths=(3,), streamed=3, prompt_tokens=6, new_tokens=8, num_prompts=1, runs=1)
    found = measure.Batch(subject, plan, 2).record(NO_MACHINE)
    one_draft = draft_work(subject.target, subject.draft_model, 2, context=10)
    assert {entry["stage"]: (entry["bytes"], entry["flops"]) for entry in found["stages"]} == {
        measure.STEP: forward_work(subject.target, 2, tokens=1, context=10),
        measure.VERIFY: forward_work(subject.target, 2, tokens=4, context=10),
        measure.DRAFT: one_draft + one_draft + one_draft,
        measure.DRAFT_STEP: one_draft,
    }
