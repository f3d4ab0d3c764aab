"""Name the known bug that produces exactly these wrong tensors.

An engine's tensors differ from the reference somewhere.  Every mutant (`known_bugs/`) is a hypothesis: with the mutant applied,
the same stages should show no difference.  A mutant is refuted if the engine's tensors do not follow it in some stage of some
case; it is named if they follow it everywhere.

Most hypotheses cost nothing, because a mutant of a function that a stage does not call cannot explain a difference there.  Most
of the others fail at the first stage that is computed, so the cheapest stage comes first.
"""

import collections
import contextlib
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from decoding.oracle import compare, golden
from decoding.oracle.cases import CASES
from decoding.oracle.known_bugs import CLASSES, EQUIVALENT, MUTANTS
from decoding.oracle.known_bugs.mutant import Mutant, Variant, replaced, watched
from decoding.oracle.record import STAGES, record
from decoding.oracle.tolerance import tolerance_of

Tensors = Mapping[str, np.ndarray]  # by name: CASE/STAGE/WHAT
CaseStage = tuple[str, str]

# Stages by the cost of computing them: the order in which hypotheses are tried.
CHEAP = ("rope", "law", "accept", "accept_block", "emit", "forward", "draft", "chunked")
EXPENSIVE = ("share", "verify", "rollback", "prefill", "stepwise", "rounds", "load")
CHEAPEST_FIRST = (*CHEAP, *EXPENSIVE)

UNUSED_KV = """\
no mutant, but known by the tensor that differs: layers that share K/V use K/V weights of their own, which the file has
  bugs:    B01 and B02: without a cache, sharing layers computed K/V of their own
  seen in: transformers https://github.com/huggingface/transformers/pull/45253, mlx-swift-lm, mlx-lm
  fix:     Give sharing layers their source's K/V, with a cache or without; ignore such weights (released files have them)."""


# -- recomputing a stage -----------------------------------------------------------------------------------------------


class Computed(NamedTuple):
    tensors: dict[str, np.ndarray]
    called: frozenset[str]  # the functions that were called, of those that some variant changes


@functools.cache
def reference(case: str, stage: str) -> Computed:
    """A stage's right tensors, and the calls of functions that variants change."""
    called: set[str] = set()
    with contextlib.ExitStack() as watching:
        for function in sorted({variant.function for variant in (*MUTANTS.values(), *EQUIVALENT.values())}):
            watching.enter_context(replaced(function, watched(function, called.add)))
        tensors = computed(case, stage)
    return Computed(tensors, frozenset(called))


@functools.cache
def under(variant: Variant, case: str, stage: str) -> dict[str, np.ndarray]:
    """The stage's tensors with a variant applied; none if the variant cannot run it."""
    right = reference(case, stage)
    if variant.function not in right.called:
        return right.tensors
    with variant.apply():
        try:
            return computed(case, stage)
        except Exception:  # a wrong shape or index somewhere: with this bug the stage would have crashed
            return {}


def computed(case: str, stage: str) -> dict[str, np.ndarray]:
    return {f"{case}/{name}": value for name, value in record(CASES[case], [stage]).items()}


def error(name: str, theirs: np.ndarray, ours: np.ndarray) -> float:
    """The error of `theirs` in the units of `compare.Result`.  NaN and another shape have the largest error."""
    case, what = name.split("/", 1)
    entry = golden.entry_of(CASES[case], what, ours)
    theirs, expected = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    if theirs.shape != expected.shape:
        return compare.BEYOND_MEASURE
    off = np.nan_to_num(compare.errors(entry, expected, theirs), nan=np.inf, posinf=np.inf)
    return compare.units_of(entry, off, expected)


def differs(name: str, units: float, right: np.ndarray) -> bool:
    return units > tolerance_of(name.split("/", 1)[1], right).units_allowed


# -- the diagnosis -----------------------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """How well the reference, or one mutant, explains an engine's tensors.  Errors are in units, as in `check`."""

    compared: int
    off: int  # how many of them differ
    error: float  # of the worst one
    first: str | None  # the first that differs, in the order in which the stages compute them

    def __str__(self) -> str:
        if not self.off:
            return f"all {self.compared} tensors agree (worst {self.error:.2g} units)"
        return f"{self.off} of {self.compared} tensors differ, by up to {self.error:.2g} units, first {self.first}"


Found = tuple[Mutant, Evidence]  # a mutant, and how well it explains the tensors


class Diagnosis(NamedTuple):
    reference: Evidence
    matches: tuple[Found, ...]  # each explains everything; several if no given tensor distinguishes them
    partial: tuple[Found, ...] = ()  # without a match: mutants that explain the first difference
    not_looked_at: Mapping[str, int] = {}  # stages and cases of the report, and how many tensors differ there
    hint: str = ""  # a bug without a mutant

    def as_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference._asdict(),
            "matches": list(map(found_as_dict, self.matches)),
            "explain_the_first_difference": list(map(found_as_dict, self.partial)),
            "not_looked_at": dict(self.not_looked_at),
            "hint": self.hint,
        }

    def __str__(self) -> str:
        if not self.reference.compared:
            return "nothing to look at: a diagnosis needs tensors of a stage that differs, and none was given"
        if not self.reference.off:
            return f"no difference: {self.reference}"
        lines = [f"reference: {self.reference}"]
        lines += [f"matches {described(mutant)}\n  with it: {evidence}" for mutant, evidence in self.matches]
        lines += [] if self.matches else [self.hint or "no known bug matches"]
        lines += [
            f"explains the first difference: {described(it)}\n  with it: {evidence}" for it, evidence in self.partial
        ]
        if self.not_looked_at:
            count = sum(self.not_looked_at.values())
            lines.append(f"not looked at: {', '.join(self.not_looked_at)} ({count} tensors differ there)")
        return "\n".join(lines)


def found_as_dict(found: Found) -> dict[str, Any]:
    mutant, evidence = found
    return {
        "name": mutant.name,
        "bugs": mutant.bugs,
        "what": mutant.what,
        "effect": mutant.effect,
        "fix": mutant.fix,
        "seen_in": [seen._asdict() for seen in mutant.seen_in],
        "with_it": evidence._asdict(),
    }


def described(mutant: Mutant) -> str:
    bugs = f" ({', '.join(mutant.bugs)})" if mutant.bugs else ""
    seen = ", ".join(f"{engine} {link}" for engine, link in mutant.seen_in) or "no public report"
    return (
        f"{mutant.name}{bugs}: {mutant.what}\n  class:   {CLASSES[mutant.rank]}\n  effect:  {mutant.effect}\n"
        f"  seen in: {seen}\n  fix:     {mutant.fix}"
    )


def diagnose(theirs: Tensors) -> Diagnosis:
    """Name the mutant that computes the tensors `theirs`.

    theirs: an engine's tensors, of one case or several.  The more there are, the fewer mutants agree with all of them; of
            none, the diagnosis is that there is nothing to look at.
    """
    stages = sorted({case_and_stage(name) for name in theirs}, key=lambda it: (CHEAPEST_FIRST.index(it[1]), it[0]))
    wrong = [stage for stage in stages if evidence(theirs, stage).off]
    if not wrong:
        return Diagnosis(total(theirs, stages), ())
    left = [mutant for mutant in MUTANTS.values() if all(takes_part(mutant, stage) for stage in wrong)]
    for stage in stages:  # also those that agree with the reference: a cheap one of them refutes as well
        left = [mutant for mutant in left if not evidence(theirs, stage, mutant).off]
    matches = [(mutant, total(theirs, stages, mutant)) for mutant in left]
    partial = [] if matches else explain_the_beginning(theirs, first_of(wrong))
    return Diagnosis(total(theirs, stages), best_first(matches), best_first(partial))


def best_first(found: Iterable[Found]) -> tuple[Found, ...]:
    return tuple(sorted(found, key=lambda pair: (pair[1].off, pair[1].error)))


def diagnose_report(report: compare.Report) -> Diagnosis:
    """A diagnosis of the tensors that `check` compared."""
    differing = [it.name for it in report.results if it.status is compare.Status.DIFFERS and it.name in report.theirs]
    if is_unused_kv(differing, report.theirs):
        units = max(it.units or 0.0 for it in report.results if it.name in differing)
        return Diagnosis(Evidence(len(report.theirs), len(differing), units, differing[0]), (), hint=UNUSED_KV)
    # If only the enumeration of acceptance differs, the cause may be in the tensors that `check` leaves out: look at them all.
    given = worth_a_look(report.theirs, differing or list(report.theirs))
    cases = {case_and_stage(name)[0] for name in given}
    left_out = [case_and_stage(name) for name in differing if name not in given]
    in_part = collections.Counter(stage for case, stage in left_out if case in cases)
    as_a_whole = collections.Counter(f"all of {case}" for case, _ in left_out if case not in cases)
    return diagnose(given)._replace(not_looked_at={**in_part, **as_a_whole})


def is_unused_kv(differing: Collection[str], theirs: Collection[str]) -> bool:
    """Logits differ with K/V weights in the file that no layer uses, and agree without them, which no mutant can do."""

    def agrees_without(case: str) -> bool:
        return any(f"{case}/{stage}/logits" in theirs for stage in ("load", "forward"))

    names = [name.split("/", 1) for name in differing]
    return bool(names) and all(what == "load/unused_kv.logits" and agrees_without(case) for case, what in names)


def worth_a_look(theirs: Tensors, differing: Collection[str]) -> Tensors:
    """The tensors that `diagnose` needs: of the first two cases that differ, the cheap stages, and one that differs."""
    wrong = sorted({case_and_stage(name) for name in differing}, key=lambda it: CHEAPEST_FIRST.index(it[1]))
    cases = sorted({case for case, _ in wrong})[:2]
    stages = {*CHEAP, *[stage for case, stage in wrong if case in cases][:1]}
    return {
        name: value for name, value in theirs.items() if name.split("/")[0] in cases and name.split("/")[1] in stages
    }


def explain_the_beginning(theirs: Tensors, stage: CaseStage) -> list[Found]:
    """Mutants with which the first tensor that differs agrees: perhaps the first of several mistakes."""
    right, order = evidence(theirs, stage), list(reference(*stage).tensors)

    def gets_further(new: Evidence) -> bool:
        if new.first is None or right.first is None:
            return new.off < right.off
        return new.off < right.off and order.index(new.first) > order.index(right.first)

    found = [(it, evidence(theirs, stage, it)) for it in MUTANTS.values() if takes_part(it, stage)]
    return [(mutant, new) for mutant, new in found if gets_further(new)]


def takes_part(mutant: Mutant, stage: CaseStage) -> bool:
    return mutant.function in reference(*stage).called


def case_and_stage(name: str) -> CaseStage:
    case, stage, _ = name.split("/", 2)
    return case, stage


def first_of(stages: list[CaseStage]) -> CaseStage:
    """In the order of the stages, but `load`, which repeats results of others, comes last."""
    return min(stages, key=lambda it: (it[1] == "load", list(STAGES).index(it[1]), it[0]))


def evidence(theirs: Tensors, stage: CaseStage, mutant: Variant | None = None) -> Evidence:
    """How one stage's tensors differ from the reference's, or from a mutant's."""
    right = reference(*stage).tensors
    ours = under(mutant, *stage) if mutant else right
    given = [name for name in right if name in theirs]
    found = {name: error(name, theirs[name], ours[name]) if name in ours else compare.BEYOND_MEASURE for name in given}
    off = [name for name in given if differs(name, found[name], right[name])]
    return Evidence(len(given), len(off), max(found.values(), default=0.0), off[0] if off else None)


def total(theirs: Tensors, stages: list[CaseStage], mutant: Mutant | None = None) -> Evidence:
    each = {stage: evidence(theirs, stage, mutant) for stage in stages}
    wrong = [stage for stage in stages if each[stage].off]
    return Evidence(
        sum(it.compared for it in each.values()),
        sum(it.off for it in each.values()),
        max((it.error for it in each.values()), default=0.0),
        each[first_of(wrong)].first if wrong else None,
    )
