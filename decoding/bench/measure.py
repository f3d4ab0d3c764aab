"""All measurements of one subject, as one record of plain numbers.

Whatever is compared takes turns within one run: machines change their speed from minute to minute by more than most
differences.  Times are seconds: of each prompt the median over the runs, and the mean of those.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from decoding.bench import cost
from decoding.bench.loops import Lap, Loop, typical
from decoding.bench.machine import Machine, measure_machine, peak_bytes
from decoding.bench.prefill import measure_prefill
from decoding.bench.spread import quartiles
from decoding.bench.stages import (
    Stage,
    Timer,
    accept_stage,
    autoregressive_stage,
    draft_and_verify,
    products_stage,
    verify_stage,
)
from decoding.bench.subject import Subject, prompts
from decoding.bench.work import Work, against_machine, draft_work, forward_work
from decoding.options import Options
from decoding.sampling import Sampling
from decoding.stages.prefill import prefill
from decoding.state import DecodeState
from gemma4.checkpoints.params import named_params

AUTOREGRESSIVE = 0  # as a draft length


class Plan(NamedTuple):
    draft_lengths: Sequence[int] = tuple(range(1, 9))
    batches: Sequence[int] = (1,)
    streamed: int = 4  # the draft length that is streamed too, and behind whose verify a single draft step is timed
    prompt_tokens: int = 48
    new_tokens: int = 120
    prefill_tokens: int = 512
    num_prompts: int = 16  # the same ones at every batch size, which divides their number
    runs: int = 3
    sampling: Sampling = Sampling()
    acceptance: str = "token"  # how sampled drafts are judged
    accept_rate: float | None = None  # None: whatever is accepted
    threads: int = 1  # to which a batch is dealt, but where it is streamed

    def prompts(self, subject: Subject) -> list[list[int]]:
        """Ragged, where there are batches; one by one they are as long as in a batch."""
        return prompts(subject, self.num_prompts, self.prompt_tokens, ragged=max(self.batches))

    def options(self, draft_length: int) -> Options:
        return Options(draft_length, self.sampling, self.sampling, acceptance=self.acceptance)


def measure(subject: Subject, plan: Plan, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Errors: ValueError if prompts and new tokens do not fit the context."""
    progress("measuring the machine")
    machine = measure_machine(subject.target.embed_tokens.weight.dtype)
    batches = []
    for size in plan.batches:
        progress(f"compiling for batch {size}")
        batches.append(Batch(subject, plan, size))
    for run in range(plan.runs):
        for batch in batches:
            progress(f"run {run + 1} of {plan.runs}, batch {batch.size}")
            batch.run(run)
    return {
        "subject": describe(subject),
        "machine": machine._asdict() | {"backend": jax.default_backend(), "jax": jax.__version__},
        "plan": plan._asdict() | {"sampling": plan.sampling._asdict()},
        "prefill": measure_prefill(subject, plan.prefill_tokens, plan.runs, machine),
        "batches": [batch.record(machine) for batch in batches],
        "peak_bytes": peak_bytes(),
    }


def describe(subject: Subject) -> dict[str, Any]:
    params = {
        name: named_params(model) for name, model in (("target", subject.target), ("drafter", subject.draft_model))
    }
    count = lambda leaves: sum(leaf.size for leaf in leaves.values())
    size = lambda leaves: sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    return {
        "name": subject.name,
        "dtype": subject.target.embed_tokens.weight.dtype.name,
        "parameters": {name: count(leaves) for name, leaves in params.items()},
        "bytes": {name: size(leaves) for name, leaves in params.items()},
        "text": "held out of the training" if subject.texts else "random tokens",
    }


class Batch:
    """The loops and stages of one batch size, and their laps so far."""

    def __init__(self, subject: Subject, plan: Plan, size: int):
        """Compiles them."""
        self.subject, self.plan, self.size = subject, plan, size
        texts = plan.prompts(subject)
        self.groups = [texts[place : place + size] for place in range(0, len(texts), size)]
        self.loops = {
            (gamma, on_device): Loop(
                subject, plan.new_tokens, plan.options(gamma), on_device, plan.accept_rate, threads
            )
            for on_device, lengths, threads in ((True, plan.draft_lengths, plan.threads), (False, [plan.streamed], 1))
            for gamma in (AUTOREGRESSIVE, *lengths)
        }
        for group in reversed(self.groups):  # compiles, for prompts of every length; the first group's laps remain
            laps = {key: loop.lap(group) for key, loop in self.loops.items()}
        self.timers = stage_timers(subject, plan, self.groups[0], laps)
        self.laps: dict[tuple, list[list[Lap]]] = {key: [[] for _ in self.groups] for key in self.loops}
        self.seconds: dict[tuple, dict[int, list[float]]] = {key: {} for key in self.timers}  # by place of the group

    def run(self, number: int) -> None:
        """Every loop and every stage over every prompt, there and back by turns.

        The stages of a draft length stand beside its loops, so that a prediction is of the seconds that it is compared with.
        Acceptance stands apart: it is short, and lets the second core rest, so that what comes next is slow for a while.
        """
        accept = [key for key in self.timers if key[0] == ACCEPT]
        order = []
        for gamma in (AUTOREGRESSIVE, *self.plan.draft_lengths):
            # The loop on the device last, beside the stages.
            order += sorted(key for key in self.loops if key[0] == gamma)
            order += [key for key in self.timers if key[1] == gamma and key not in accept]
        for key in accept:
            self._time(key, 0)
        for place in range(len(self.groups)):
            for key in order[::-1] if (number + place) % 2 else order:
                self._time(key, place)

    def _time(self, key: tuple, place: int) -> None:
        group = self.groups[place]
        if key in self.loops:
            self.laps[key][place].append(self.loops[key].lap(group, seed=place))
        else:
            jax.block_until_ready(prefilled(self.subject, self.plan, group))  # as before a loop
            self.seconds[key].setdefault(place, []).append(self.timers[key].lap())

    def record(self, machine: Machine) -> dict[str, Any]:
        laps = {key: [statistics.median(runs) for runs in places.values()] for key, places in self.seconds.items()}
        stages = stage_seconds(laps, self.plan.streamed)
        seconds = {key: statistics.fmean(values) for key, values in stages.items()}
        context = self.plan.prompt_tokens + self.plan.new_tokens // 2
        compiled_in = {key: timer.compile_seconds for key, timer in self.timers.items()}
        return {
            "batch": self.size,
            "stages": [
                {
                    "stage": name,
                    "draft_length": gamma,
                    "compile_seconds": compiled_in.get((name, gamma)),
                    "seconds_quartiles": quartiles(laps),
                }
                | against_machine(
                    seconds[name, gamma], stage_work(self.subject, name, self.size, context, gamma), machine
                )
                for (name, gamma), laps in stages.items()
            ],
            "loops": loop_entries(self.laps, seconds, self.size),
        }


STEP, DRAFT, DRAFT_STEP, VERIFY, ACCEPT = "autoregressive step", "draft", "draft, a single step", "verify", "accept"
PRODUCTS = "verify, products alone"
DRAFT_AND_VERIFY, DRAFT_STEP_AND_VERIFY = "draft and verify", "draft step and verify"  # taken apart by `stage_seconds`


def stage_timers(
    subject: Subject, plan: Plan, group: list[list[int]], loops: dict[tuple[int, bool], Lap]
) -> dict[tuple[str, int], Timer]:
    """By stage and draft length.

    A lap repeats a stage as often as the loop of that draft length turns, of which `loops` holds a lap: a core that has rested
    is slow for a while, and the shorter the loop, the more that counts.  In the order of their laps: a verify stands beside
    what it is taken from.
    """
    turns = {gamma: lap.turns for (gamma, on_device), lap in loops.items() if on_device}

    def timer(stage: Stage, gamma: int, repetitions: int) -> Timer:
        state = prefilled(subject, plan, group)
        return Timer(stage, subject.target, subject.draft_model, state, plan.options(gamma), repetitions, plan.threads)

    timers = {(STEP, 0): timer(autoregressive_stage, 1, turns[AUTOREGRESSIVE])}
    for gamma in plan.draft_lengths:
        timers |= {
            (DRAFT_AND_VERIFY, gamma): timer(draft_and_verify(gamma), gamma, turns[gamma]),
            (VERIFY, gamma): timer(verify_stage, gamma, turns[gamma]),
        }
        if gamma == plan.streamed:
            timers[DRAFT_STEP_AND_VERIFY, gamma] = timer(draft_and_verify(gamma), 1, turns[gamma])
        timers |= {
            (PRODUCTS, gamma): timer(products_stage, gamma, turns[gamma]),
            (ACCEPT, gamma): timer(accept_stage, gamma, 0),  # too short for the call's own time to be counted in
        }
    return timers


def prefilled(subject: Subject, plan: Plan, group: list[list[int]]) -> DecodeState:
    longest = plan.options(max(plan.draft_lengths))  # for all of them, so that all states are alike
    return prefill(subject.target, group, plan.new_tokens, longest, jax.random.key(0))


def stage_seconds(laps: dict[tuple[str, int], list[float]], streamed: int) -> dict[tuple[str, int], list[float]]:
    """The laps of each stage; those of a draft are differences of laps that stood side by side."""

    def without_verify(name: str, gamma: int) -> list[float]:
        return [both - verify for both, verify in zip(laps[name, gamma], laps[VERIFY, gamma], strict=True)]

    return {
        (STEP, 0): laps[STEP, 0],
        (DRAFT_STEP, 1): without_verify(DRAFT_STEP_AND_VERIFY, streamed),
        **{(DRAFT, gamma): without_verify(name, gamma) for name, gamma in laps if name == DRAFT_AND_VERIFY},
        **{key: laps[key] for stage in (VERIFY, PRODUCTS, ACCEPT) for key in laps if key[0] == stage},
    }


def stage_work(subject: Subject, name: str, batch: int, context: int, draft_length: int) -> Work:
    if name == STEP:
        return forward_work(subject.target, batch, 1, context)
    if name == VERIFY:
        return forward_work(subject.target, batch, draft_length + 1, context)
    if name in (DRAFT, DRAFT_STEP):
        step = draft_work(subject.target, subject.draft_model, batch, context)
        return Work(*(draft_length * of_step for of_step in step))
    assert name in (PRODUCTS, ACCEPT), name
    return Work(0, 0)  # not counted


def loop_entries(
    laps: dict[tuple[int, bool], list[list[Lap]]], seconds: dict[tuple[str, int], float], batch: int
) -> list[dict]:
    """Tokens a second of each loop, its gain over the autoregressive one of its kind, and what the cost model says."""
    entries = []
    for (gamma, on_device), mine in laps.items():
        lap, baseline = typical(mine), laps[AUTOREGRESSIVE, on_device]
        entry = {
            "loop": "on the device" if on_device else "streaming",
            "draft_length": gamma,
            "tokens_per_second": lap.tokens_per_second,
            "seconds_per_round": lap.seconds / lap.turns,
        }
        if gamma:
            ratios = [
                ours.tokens_per_second / theirs.tokens_per_second
                for ours_of, theirs_of in zip(mine, baseline, strict=True)
                for ours, theirs in zip(ours_of, theirs_of, strict=True)
            ]
            entry |= {
                "tokens_per_round": lap.tokens / lap.rounds,
                "acceptance": lap.reached,
                "speed_up": lap.tokens_per_second / typical(baseline).tokens_per_second,
                "speed_up_quartiles": quartiles(ratios),
            }
        if gamma and on_device:
            stages = [seconds[key] for key in ((STEP, 0), (DRAFT, gamma), (VERIFY, gamma), (ACCEPT, gamma))]
            yield_of_turn = lap.tokens / lap.turns / batch  # rows that end before the others yield nothing any more
            entry["predicted"] = cost.speed_up(yield_of_turn, cost.Times(*stages))
        entries.append(entry)
    return entries
