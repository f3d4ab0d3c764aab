"""From what a submission computed to points and sentences.  Needs a key, and for properties the assignment's judges.

A check by value passes if every result is the reference's, whatever the code is.  Where results differ, the misconception is
named whose results are those of the submission in every call of that function; else two at once; else the first divergence.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from decoding.course.compare import first_difference, normalised, same
from decoding.course.key import Answers, Key, KeyCheck, Place
from decoding.course.sandbox import Outcome, run
from decoding.course.source import read_source

# Of each check that has one: what is wrong in one sentence, or None.
Judges = Mapping[str, Callable[[Sequence[Sequence[np.ndarray]]], str | None]]
JUDGED_CRASH = "its results cannot be judged: a shape or a range is wrong"


@dataclasses.dataclass
class CheckResult:
    name: str
    what: str
    is_public: bool
    status: str  # "passed", "failed", "not written"
    points: int
    of: int
    message: str = ""


@dataclasses.dataclass
class Named:
    name: str
    says: str
    is_one_of: bool = False  # another one gives the same results here


@dataclasses.dataclass
class Report:
    """What a submission gets.  `ended` is "ok" if its code came to the end of every check."""

    assignment: str
    title: str
    submission: str
    checks: list[CheckResult]
    misconceptions: list[Named]
    ended: str
    unnamed: str | None  # a fingerprint of results that no misconception explains, the same for the same mistake
    seconds: float
    notes: list[str]
    printed: str

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)

    @property
    def of(self) -> int:
        return sum(check.of for check in self.checks)

    @property
    def is_complete(self) -> bool:
        return self.points == self.of


def grade_file(key: Key, judges: Judges, file: Path, *, submission: str | None = None, **limits: float) -> Report:
    """Run a file and grade it.  Errors: CourseError if it is no Python file that can be read."""
    began = time.perf_counter()
    source = read_source(file)
    outcome = run(source, key.calls, file_name=f"{key.name}.py", **limits)  # pyright: ignore[reportArgumentType]
    report = grade(key, judges, outcome, submission=submission or file.stem)
    return dataclasses.replace(report, seconds=round(time.perf_counter() - began, 2))


def grade(key: Key, judges: Judges, outcome: Outcome, *, submission: str = "") -> Report:
    """Judge what came back."""
    found = {
        place: normalised(outputs) if key.function_at(place) in key.up_to_scale else outputs
        for place, outputs in outcome.outputs.items()
    }
    outcome = dataclasses.replace(outcome, outputs=found)
    checks = [_judged(key, judges, check, outcome) for check in key.checks]
    named, explained = name_mistakes(key, outcome.outputs)
    has_wrong = any(_is_wrong(key, place, outcome.outputs) for place in key.by_value() if place in outcome.outputs)
    return Report(
        assignment=key.number,
        title=key.title,
        submission=submission,
        checks=checks,
        misconceptions=named,
        ended=outcome.ended,
        unnamed=fingerprint(key, outcome.outputs) if has_wrong and not explained else None,
        seconds=0.0,
        notes=outcome.notes,
        printed=outcome.printed,
    )


def _is_wrong(key: Key, place: Place, outputs: Answers) -> bool:
    return not same(outputs[place], key.expected[place], key.meaning.get(place))


def _judged(key: Key, judges: Judges, check: KeyCheck, outcome: Outcome) -> CheckResult:
    status, message = _status(key, judges, check, outcome)
    points = check.points if status == "passed" else 0
    return CheckResult(check.name, check.what, check.is_public, status, points, check.points, message)


def _status(key: Key, judges: Judges, check: KeyCheck, outcome: Outcome) -> tuple[str, str]:
    places = [(check.name, index) for index in range(len(key.calls[check.name]))]
    unwritten = [key.function_at(place) for place in places if key.function_at(place) in outcome.unwritten]
    if unwritten:
        return "not written", f"{unwritten[0]} is not written yet"
    for place in places:
        call, with_these = key.calls[place[0]][place[1]], f"with {key.abouts[place]}"
        if place in outcome.errors:
            return "failed", f"{call.function}, {with_these}: {outcome.errors[place]}"
        if place not in outcome.outputs:
            return "failed", outcome.ended if outcome.ended != "ok" else "no result came back"
        if place in outcome.changed:
            return "failed", f"{call.function} changes its argument number {outcome.changed[place] + 1}; copy it first"
    found = [outcome.outputs[place] for place in places]
    if check.is_judged:
        try:
            wrong = judges[check.name](found)
        except Exception:  # a judge meets results of any shape and type
            wrong = JUDGED_CRASH
        return ("failed", wrong) if wrong else ("passed", "")
    for place, outputs in zip(places, found, strict=True):
        if _is_wrong(key, place, outcome.outputs):
            call = key.calls[place[0]][place[1]]
            difference = first_difference(
                call.outputs,
                outputs,
                key.expected[place],
                key.meaning.get(place),
                show_expected=check.is_public,
            )
            return "failed", f"{call.function}, with {key.abouts[place]}: {difference}"
    return "passed", ""


# -- naming ------------------------------------------------------------------------------------------------------------


def name_mistakes(key: Key, outputs: Answers) -> tuple[list[Named], bool]:
    """The misconceptions that explain every wrong result, function by function, and whether all is explained."""
    named: dict[str, Named] = {}
    explained = True
    by_value = list(key.by_value())
    functions = dict.fromkeys(map(key.function_at, by_value))
    for function in functions:
        places = [place for place in by_value if key.function_at(place) == function and place in outputs]
        if not any(_is_wrong(key, place, outputs) for place in places):
            continue
        singles = [name for name in key.answers if " + " not in name and _explains(key, name, places, outputs)]
        pairs = [name for name in key.answers if " + " in name and _explains(key, name, places, outputs)]
        if singles:
            groups = [singles[:1]] if len(singles) == 1 else [[name] for name in singles]
        else:
            groups = [name.split(" + ") for name in pairs]
            sure = set.intersection(*map(set, groups)) if groups else set()
            groups = [sorted(sure, key=list(key.says).index)] if sure and len(groups) > 1 else groups
        if not groups:
            explained = False
        for group in groups:
            for name in group:
                is_one_of = len(groups) > 1
                if name not in named or not is_one_of:
                    named[name] = Named(name, key.says[name], is_one_of)
    return _without_doubt(list(named.values())), explained


def _explains(key: Key, name: str, places: Sequence[Place], outputs: Answers) -> bool:
    answers = key.answers[name]
    return all(place in answers and same(outputs[place], answers[place], key.meaning.get(place)) for place in places)


def _without_doubt(named: list[Named]) -> list[Named]:
    """A name that one function proves leaves no doubt in another function."""
    sure = [one for one in named if not one.is_one_of]
    return sure or named


def fingerprint(key: Key, outputs: Answers) -> str:
    """The same for submissions with the same wrong results in the public checks, whose inputs all students share."""
    digest = hashlib.sha256()
    for check in key.checks:
        for index in range(len(key.calls[check.name])):
            place = (check.name, index)
            if check.is_judged or place not in outputs:
                continue
            digest.update(f"{place} {_is_wrong(key, place, outputs)}".encode())
            for array in outputs[place] if check.is_public else ():
                digest.update(str(array.shape).encode())
                rounded = np.round(array, 3) + 0.0 if array.dtype.kind == "f" else array.astype(np.int64)
                digest.update(rounded.tobytes())
    return digest.hexdigest()[:12]
