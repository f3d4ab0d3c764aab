"""All measurements of one subject, as one record of plain numbers.

Whatever is compared alternates within one run: machines change their speed from minute to minute by more than most
differences.  Times are seconds: the median over the runs for each prompt, and the mean of these medians.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from decoding import fast
from decoding.bench import cost
from decoding.bench.extra.prefill import measure_prefill
from decoding.bench.loops import Lap, Loop, quartiles, typical
from decoding.bench.machine import Machine, measure_machine, peak_bytes
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
from gemma4.checkpoints.params import Leaf, named_params
from gemma4.fast import this_backend

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
    acceptance: str = "token"  # how sampled drafts are accepted
    accept_rate: float | None = None  # simulated; None: drafts are accepted as in any generation
    threads: int = 1  # over which a batch is split; a streamed loop has one

    def prompts(self, subject: Subject) -> list[list[int]]:
        """Ragged if there are batches; the same lengths where prompts run one by one."""
        return prompts(subject, self.num_prompts, self.prompt_tokens, ragged=max(self.batches))

    def options(self, draft_length: int) -> Options:
        return fast.with_kernels(Options(draft_length, self.sampling, acceptance=self.acceptance))


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
        "machine": machine._asdict() | {"backend": this_backend(), "jax": jax.__version__},
        "plan": plan._asdict() | {"sampling": dataclasses.asdict(plan.sampling)},
        "prefill": measure_prefill(subject, plan.prefill_tokens, plan.runs, machine),
        "batches": [batch.record(machine) for batch in batches],
        "peak_bytes": peak_bytes(),
    }


def describe(subject: Subject) -> dict[str, Any]:
    params = {
        name: named_params(model) for name, model in (("target", subject.target), ("drafter", subject.draft_model))
    }

    def size(leaves: dict[str, Leaf]) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())

    return {
        "name": subject.name,
        "dtype": subject.target.embed_tokens.weight.dtype.name,
        "parameters": {name: sum(leaf.size for leaf in leaves.values()) for name, leaves in params.items()},
        "bytes": {name: size(leaves) for name, leaves in params.items()},
        "text": "held out of the training" if subject.texts else "random tokens",
    }


class Batch:
    """The loops and stages of one batch size, and their laps so far."""

    def __init__(self, subject: Subject, plan: Plan, size: int):
        """Compiles them, with the twins of the subject's models."""
        self.subject, self.twins, self.plan, self.size = subject, subject.for_backend(), plan, size
        texts = plan.prompts(subject)
        self.groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        self.loops = {
            (gamma, on_device): Loop(
                self.twins, plan.new_tokens, plan.options(gamma), on_device, plan.accept_rate, threads
            )
            for on_device, lengths, threads in ((True, plan.draft_lengths, plan.threads), (False, [plan.streamed], 1))
            for gamma in (AUTOREGRESSIVE, *lengths)
        }
        laps: dict[tuple[int, bool], Lap] = {}
        for group in reversed(self.groups):  # compiles, for prompts of every length; keeps the first group's laps
            laps = {key: loop.lap(group) for key, loop in self.loops.items()}
        self.timers = stage_timers(self.twins, plan, self.groups[0], laps)
        self.laps: dict[tuple, list[list[Lap]]] = {key: [[] for _ in self.groups] for key in self.loops}
        self.seconds: dict[tuple, dict[int, list[float]]] = {key: {} for key in self.timers}  # by number of the group

    def run(self, number: int) -> None:
        """Every loop and every stage over every group of prompts, in one order and in its reverse, alternately.

        The stages of a draft length run next to its loops, so that a prediction is compared with seconds of the same time.
        Acceptance runs apart: it is short, and leaves the second core idle, so that what comes next is slow for a while.
        """
        accept = [key for key in self.timers if key[0] == ACCEPT]
        order = []
        for gamma in (AUTOREGRESSIVE, *self.plan.draft_lengths):
            # The loop on the device is the last one, next to the stages.
            order += sorted(key for key in self.loops if key[0] == gamma)
            order += [key for key in self.timers if key[1] == gamma and key not in accept]
        for key in accept:
            self._time(key, 0)
        for group in range(len(self.groups)):
            for key in order[::-1] if (number + group) % 2 else order:
                self._time(key, group)

    def _time(self, key: tuple, number: int) -> None:
        group = self.groups[number]
        if key in self.loops:
            self.laps[key][number].append(self.loops[key].lap(group, seed=number))
        else:
            jax.block_until_ready(prefilled(self.twins, self.plan, group))  # as before a loop
            self.seconds[key].setdefault(number, []).append(self.timers[key].lap())

    def record(self, machine: Machine) -> dict[str, Any]:
        laps = {key: [statistics.median(runs) for runs in groups.values()] for key, groups in self.seconds.items()}
        stages = stage_seconds(laps, self.plan.streamed)
        seconds = {key: statistics.fmean(values) for key, values in stages.items()}
        context = self.plan.prompt_tokens + self.plan.new_tokens // 2
        compile_seconds = {key: timer.compile_seconds for key, timer in self.timers.items()}
        return {
            "batch": self.size,
            "stages": [
                {
                    "stage": name,
                    "draft_length": gamma,
                    "compile_seconds": compile_seconds.get((name, gamma)),
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
DRAFT_AND_VERIFY, DRAFT_STEP_AND_VERIFY = (
    "draft and verify",
    "draft step and verify",
)  # `stage_seconds` subtracts the verify


def stage_timers(
    subject: Subject, plan: Plan, group: list[list[int]], loops: dict[tuple[int, bool], Lap]
) -> dict[tuple[str, int], Timer]:
    """The timers by stage and draft length, in the order of their laps: a verify next to what it is subtracted from.

    A lap has as many repetitions of a stage as the loop of that draft length has iterations (`loops` holds a lap of each): a
    core that was idle is slow for a while, and the shorter the loop, the more that counts.
    """
    iterations = {gamma: lap.iterations for (gamma, on_device), lap in loops.items() if on_device}

    def timer(stage: Stage, gamma: int, repetitions: int) -> Timer:
        state = prefilled(subject, plan, group)
        return Timer(stage, subject.target, subject.draft_model, state, plan.options(gamma), repetitions, plan.threads)

    timers = {(STEP, 0): timer(autoregressive_stage, 1, iterations[AUTOREGRESSIVE])}
    for gamma in plan.draft_lengths:
        timers |= {
            (DRAFT_AND_VERIFY, gamma): timer(draft_and_verify(gamma), gamma, iterations[gamma]),
            (VERIFY, gamma): timer(verify_stage, gamma, iterations[gamma]),
        }
        if gamma == plan.streamed:
            timers[DRAFT_STEP_AND_VERIFY, gamma] = timer(draft_and_verify(gamma), 1, iterations[gamma])
        timers |= {
            (PRODUCTS, gamma): timer(products_stage, gamma, iterations[gamma]),
            (ACCEPT, gamma): timer(accept_stage, gamma, 0),  # so short that the call itself would count
        }
    return timers


def prefilled(subject: Subject, plan: Plan, group: list[list[int]]) -> DecodeState:
    longest = plan.options(max(plan.draft_lengths))  # the same for all stages, so that all states have one shape
    return prefill(subject.target, group, longest, max_new_tokens=plan.new_tokens, key=jax.random.key(0))


def stage_seconds(laps: dict[tuple[str, int], list[float]], streamed: int) -> dict[tuple[str, int], list[float]]:
    """The laps of each stage; those of a draft are differences of neighbouring laps."""

    def without_verify(name: str, gamma: int) -> list[float]:
        return [both - verify for both, verify in zip(laps[name, gamma], laps[VERIFY, gamma], strict=True)]

    return {
        (STEP, 0): laps[STEP, 0],
        (DRAFT_STEP, 1): without_verify(DRAFT_STEP_AND_VERIFY, streamed),
        **{(DRAFT, gamma): without_verify(name, gamma) for name, gamma in laps if name == DRAFT_AND_VERIFY},
        **{key: laps[key] for stage in (VERIFY, PRODUCTS, ACCEPT) for key in laps if key[0] == stage},
    }


def stage_work(subject: Subject, name: str, batch: int, context: int, draft_length: int) -> Work:
    """subject: as loaded.  The copies of weights that a twin holds are no work of the formulas."""
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
    """Tokens per second of each loop, its speed-up over the autoregressive loop of its kind, and the predicted speed-up."""
    entries = []
    for (gamma, on_device), laps_of_loop in laps.items():
        lap, baseline = typical(laps_of_loop), laps[AUTOREGRESSIVE, on_device]
        entry = {
            "loop": "on the device" if on_device else "streaming",
            "draft_length": gamma,
            "tokens_per_second": lap.tokens_per_second,
            "seconds_per_round": lap.seconds / lap.iterations,
        }
        if gamma:
            ratios = [
                ours.tokens_per_second / theirs.tokens_per_second
                for ours_of, theirs_of in zip(laps_of_loop, baseline, strict=True)
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
            tokens_per_row = lap.tokens / lap.iterations / batch  # rows that end before the others yield nothing more
            entry["predicted"] = cost.speed_up(tokens_per_row, cost.Times(*stages))
        entries.append(entry)
    return entries
