"""Which known bug gives exactly these wrong tensors.

An engine's tensors differ from the reference somewhere.  Every mutant (`mutants/`) is a hypothesis: compute the same stages
with the mutant, and see whether the difference is gone.  A mutant that the engine's tensors do not follow, in any stage of
any case, is refuted; one that they follow everywhere is named.

Most hypotheses cost nothing: a mutant of a function that a stage does not call cannot explain a difference there.  Of the
others most fall at the first stage they are tried on, so the cheapest stage is tried first.
"""

import collections
import contextlib
import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from decoding.oracle import compare, golden
from decoding.oracle.cases import CASES
from decoding.oracle.known_bugs import CLASSES, EQUIVALENT, MUTANTS
from decoding.oracle.known_bugs.mutant import Mutant, Variant, replaced, watched
from decoding.oracle.record import STAGES, record
from decoding.oracle.tolerance import tolerance_of

Tensors = Mapping[str, np.ndarray]  # by name: CASE/STAGE/WHAT
Place = tuple[str, str]  # case, stage

# Stages by what it costs to compute them: the order in which hypotheses are tried.
CHEAP = ("rope", "law", "accept", "accept_block", "emit", "forward", "draft", "chunked")
DEAR = ("share", "verify", "rollback", "prefill", "stepwise", "rounds", "load")
CHEAPEST_FIRST = (*CHEAP, *DEAR)

UNUSED_KV = """\
no mutant, but known by where it shows: layers that share K/V use K/V weights of their own, which their file happens to hold
  bugs:    B01 and B02: without a cache, sharing layers computed K/V of their own
  seen in: transformers https://github.com/huggingface/transformers/pull/45253, mlx-swift-lm, mlx-lm
  fix:     Give sharing layers their source's K/V, with a cache or without; ignore such weights (released files have them)."""


# -- recomputing a stage -----------------------------------------------------------------------------------------------


class Computed(NamedTuple):
    tensors: dict[str, np.ndarray]
    called: frozenset[str]  # those functions that some variant changes


@functools.cache
def reference(case: str, stage: str) -> Computed:
    """A stage's right tensors, and which of the functions that variants change took part."""
    called: set[str] = set()
    with contextlib.ExitStack() as watching:
        for function in sorted({variant.function for variant in (*MUTANTS.values(), *EQUIVALENT.values())}):
            watching.enter_context(replaced(function, watched(function, called.add)))
        tensors = computed(case, stage)
    return Computed(tensors, frozenset(called))


@functools.cache
def under(variant: Variant, case: str, stage: str) -> dict[str, np.ndarray]:
    """The stage's tensors with a variant in place; none if the variant cannot run it."""
    right = reference(case, stage)
    if variant.function not in right.called:
        return right.tensors
    with variant.apply():
        try:
            return computed(case, stage)
        except Exception:  # a wrong shape or index, somewhere below: this bug would have crashed here
            return {}


def computed(case: str, stage: str) -> dict[str, np.ndarray]:
    return {f"{case}/{name}": value for name, value in record(CASES[case], [stage]).items()}


def error(name: str, theirs: np.ndarray, ours: np.ndarray) -> float:
    """How far `theirs` is off, in the units of `compare.Result`.  NaN, and another shape, are as far off as can be."""
    case, what = name.split("/", 1)
    entry, theirs = golden.entry_of(CASES[case], what, ours), np.asarray(theirs)
    if theirs.shape != ours.shape:
        return compare.BEYOND_MEASURE
    off = np.nan_to_num(compare.errors(entry, np.float64(ours), np.float64(theirs)), nan=np.inf, posinf=np.inf)
    return compare.units_of(entry, off, np.float64(ours))


def differs(name: str, units: float, right: np.ndarray) -> bool:
    return units > tolerance_of(name.split("/", 1)[1], right).units_allowed


# -- the diagnosis -----------------------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """How well the reference, or one mutant, accounts for an engine's tensors.  Errors are in units, as `check` has them."""

    compared: int
    off: int  # how many of them differ
    error: float  # of the worst one
    first: str | None  # the first that differs, in the order in which the stages compute them

    def __str__(self) -> str:
        if not self.off:
            return f"all {self.compared} tensors agree (worst {self.error:.2g} units)"
        return f"{self.off} of {self.compared} tensors differ, by up to {self.error:.2g} units, first {self.first}"


Found = tuple[Mutant, Evidence]  # a mutant, and how well it accounts for the tensors


class Diagnosis(NamedTuple):
    reference: Evidence
    matches: tuple[Found, ...]  # each explains everything; if several, no tensor here tells them apart
    partial: tuple[Found, ...] = ()  # without a match: mutants that explain the first difference
    not_looked_at: Mapping[str, int] = {}  # stages and cases of the report, and how many tensors differ there
    hint: str = ""  # a bug without a mutant

    def as_dict(self) -> dict[str, Any]:
        as_dicts = lambda found: [
            {
                "name": it.name,
                "bugs": it.bugs,
                "what": it.what,
                "effect": it.effect,
                "fix": it.fix,
                "seen_in": [seen._asdict() for seen in it.seen_in],
            }
            | {"with_it": evidence._asdict()}
            for it, evidence in found
        ]
        return {
            "reference": self.reference._asdict(),
            "matches": as_dicts(self.matches),
            "explain_the_first_difference": as_dicts(self.partial),
            "not_looked_at": dict(self.not_looked_at),
            "hint": self.hint,
        }

    def __str__(self) -> str:
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


def described(mutant: Mutant) -> str:
    bugs = f" ({', '.join(mutant.bugs)})" if mutant.bugs else ""
    seen = ", ".join(f"{engine} {link}" for engine, link in mutant.seen_in) or "no public report"
    return (
        f"{mutant.name}{bugs}: {mutant.what}\n  class:   {CLASSES[mutant.rank]}\n  effect:  {mutant.effect}\n"
        f"  seen in: {seen}\n  fix:     {mutant.fix}"
    )


def diagnose(theirs: Tensors) -> Diagnosis:
    """Name the mutant whose tensors `theirs` are.

    theirs: as many of an engine's tensors as there are, of one case or several: the more, the fewer mutants agree with all.
    """
    places = sorted({place_of(name) for name in theirs}, key=lambda place: (CHEAPEST_FIRST.index(place[1]), place[0]))
    wrong = [place for place in places if evidence(theirs, place).off]
    if not wrong:
        return Diagnosis(total(theirs, places), ())
    standing = [mutant for mutant in MUTANTS.values() if all(takes_part(mutant, place) for place in wrong)]
    for place in places:  # a cheap stage that agrees refutes as well as a dear one that does not
        standing = [mutant for mutant in standing if not evidence(theirs, place, mutant).off]
    matches = [(mutant, total(theirs, places, mutant)) for mutant in standing]
    partial = [] if matches else explain_the_beginning(theirs, first_of(wrong))
    best_first = lambda found: tuple(sorted(found, key=lambda pair: (pair[1].off, pair[1].error)))
    return Diagnosis(total(theirs, places), best_first(matches), best_first(partial))


def diagnose_report(report: compare.Report) -> Diagnosis:
    """Of what `check` compared."""
    differing = [it.name for it in report.results if it.status is compare.Status.DIFFERS and it.name in report.theirs]
    if is_unused_kv(differing, report.theirs):
        units = max(it.units for it in report.results if it.name in differing)
        return Diagnosis(Evidence(len(report.theirs), len(differing), units, differing[0]), (), hint=UNUSED_KV)
    # Where only the enumeration of acceptance found something, it may be how drafts are drawn: tensors that `check` leaves out.
    given = worth_a_look(report.theirs, differing or list(report.theirs))
    cases = {place_of(name)[0] for name in given}
    left_out = [place_of(name) for name in differing if name not in given]
    in_part = collections.Counter(stage for case, stage in left_out if case in cases)
    as_a_whole = collections.Counter(f"all of {case}" for case, _ in left_out if case not in cases)
    return diagnose(given)._replace(not_looked_at={**in_part, **as_a_whole})


def is_unused_kv(differing: Collection[str], theirs: Collection[str]) -> bool:
    """Logits differ with K/V weights in the file that no layer uses, and agree without them, which no mutant can do."""
    agrees_without = lambda case: any(f"{case}/{stage}/logits" in theirs for stage in ("load", "forward"))
    places = [name.split("/", 1) for name in differing]
    return bool(places) and all(what == "load/unused_kv.logits" and agrees_without(case) for case, what in places)


def worth_a_look(theirs: Tensors, differing: Collection[str]) -> Tensors:
    """What `diagnose` needs of many tensors: of the first two cases that differ, the cheap stages, and one that differs."""
    wrong = sorted({place_of(name) for name in differing}, key=lambda place: CHEAPEST_FIRST.index(place[1]))
    cases = sorted({case for case, _ in wrong})[:2]
    stages = {*CHEAP, *[stage for case, stage in wrong if case in cases][:1]}
    return {
        name: value for name, value in theirs.items() if name.split("/")[0] in cases and name.split("/")[1] in stages
    }


def explain_the_beginning(theirs: Tensors, place: Place) -> list[Found]:
    """Mutants with which the first tensor that differs agrees: the first of several mistakes, perhaps."""
    right, order = evidence(theirs, place), list(reference(*place).tensors)
    found = [(it, evidence(theirs, place, it)) for it in MUTANTS.values() if takes_part(it, place)]
    gets_further = lambda new: new.first is None or order.index(new.first) > order.index(right.first)
    return [(mutant, new) for mutant, new in found if new.off < right.off and gets_further(new)]


def takes_part(mutant: Mutant, place: Place) -> bool:
    return mutant.function in reference(*place).called


def place_of(name: str) -> Place:
    case, stage, _ = name.split("/", 2)
    return case, stage


def first_of(places: list[Place]) -> Place:
    """In the order of the stages, but for `load`, which repeats others' last tensors."""
    return min(places, key=lambda place: (place[1] == "load", list(STAGES).index(place[1]), place[0]))


def evidence(theirs: Tensors, place: Place, mutant: Variant | None = None) -> Evidence:
    """What of one stage differs from the reference, or from what a mutant computes there."""
    right = reference(*place).tensors
    ours = under(mutant, *place) if mutant else right
    given = [name for name in right if name in theirs]
    found = {name: error(name, theirs[name], ours[name]) if name in ours else compare.BEYOND_MEASURE for name in given}
    off = [name for name in given if differs(name, found[name], right[name])]
    return Evidence(len(given), len(off), max(found.values(), default=0.0), off[0] if off else None)


def total(theirs: Tensors, places: list[Place], mutant: Mutant | None = None) -> Evidence:
    each = {place: evidence(theirs, place, mutant) for place in places}
    wrong = [place for place in places if each[place].off]
    return Evidence(
        sum(it.compared for it in each.values()),
        sum(it.off for it in each.values()),
        max(it.error for it in each.values()),
        each[first_of(wrong)].first if wrong else None,
    )
