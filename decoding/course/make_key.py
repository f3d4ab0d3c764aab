"""Compute the answer key of an assignment from the reference, and refuse one that would grade badly.

A key is refused unless every misconception is caught, every two are told apart, everything right passes, and answers without
content pass no check.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from decoding.course.assignment import Assignment, Call, Check
from decoding.course.child import as_arrays
from decoding.course.compare import normalised, same
from decoding.course.error import CourseError
from decoding.course.key import Answers, Key, KeyCheck, Place
from decoding.course.sandbox import PlannedCall
from decoding.oracle.known_bugs.mutant import Variant, replaced

ATTEMPTS = 16  # seeds that are tried until a key is accepted
BATTERIES = 4  # sets of hidden inputs a course has; each student gets one of them


def battery_of(secret: str, student: str) -> int:
    """Which of the hidden inputs a student gets."""
    return int(hashlib.sha256(f"{secret}\n{student}".encode()).hexdigest(), 16) % BATTERIES


def make_key(assignment: Assignment, secret: str = "", battery: int = 0) -> Key:
    """The key for the hidden inputs number `battery` of the course with this secret.  Public inputs depend on neither.

    Errors: CourseError that says why no key of `ATTEMPTS` seeds is good.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        key = _computed(assignment, secret, battery, attempt)
        reason = why_refused(assignment, key)
        if reason is None:
            return key
    raise CourseError(f"assignment {assignment.number}: no seed gives a key that grades well: {reason}")


def inputs_of(assignment: Assignment, secret: str, battery: int, attempt: int) -> dict[str, list[Call]]:
    def rng_of(check: Check) -> np.random.Generator:
        course = "public" if check.is_public else f"{secret}\n{battery}"
        seed = hashlib.sha256(f"{assignment.number}\n{check.name}\n{course}\n{attempt}".encode()).digest()
        return np.random.default_rng(list(seed))

    return {check.name: check.calls(rng_of(check)) for check in assignment.checks}


def _computed(assignment: Assignment, secret: str, battery: int, attempt: int) -> Key:
    calls = inputs_of(assignment, secret, battery, attempt)
    by_value = {check.name for check in assignment.checks if check.judge is None}
    expected = answers_to(assignment, calls)
    meaning: Answers = {}
    for place, outputs in expected.items():
        call = calls[place[0]][place[1]]
        if (mask := assignment.hole(call.function).meaning) is not None:
            meaning[place] = mask(call.arguments, outputs)
    valued = {name: calls[name] for name in calls if name in by_value}
    answers = {m.name: answers_to(assignment, valued, (m.variant,)) for m in assignment.misconceptions}
    for pair in itertools.combinations(assignment.misconceptions, 2):
        with contextlib.suppress(Incompatible):
            both = answers_to(assignment, valued, tuple(m.variant for m in pair))
            alone = [answers[m.name] for m in pair]
            if not any(_agree(both, other, meaning) for other in (expected, *alone)):
                answers[" + ".join(m.name for m in pair)] = both
    return Key(
        name=assignment.name,
        title=assignment.title,
        checks=[KeyCheck(c.name, c.what, c.points, c.is_public, c.judge is not None) for c in assignment.checks],
        calls={name: [planned(assignment, call) for call in each] for name, each in calls.items()},
        abouts={(name, index): call.about for name, each in calls.items() for index, call in enumerate(each)},
        expected=expected,
        meaning=meaning,
        answers=answers,
        says={m.name: m.says for m in assignment.misconceptions},
        up_to_scale=[hole.name for hole in assignment.holes if hole.is_up_to_scale],
    )


def planned(assignment: Assignment, call: Call) -> PlannedCall:
    hole = assignment.hole(call.function)
    return PlannedCall(call.function, [call.arguments[name] for name in hole.parameters], hole.outputs)


class Incompatible(Exception):
    """Two changes of one function that cannot both be made."""


@contextlib.contextmanager
def applied(variants: Sequence[Variant]) -> Iterator[None]:
    """Within the block, the reference has all these changes.  Errors: Incompatible if one hides another's text."""
    by_function: dict[str, list[Variant]] = {}
    for variant in variants:
        by_function.setdefault(variant.function, []).append(variant)
    with contextlib.ExitStack() as stack:
        for function, group in by_function.items():
            change: dict[str, str] = {}
            for variant in group:
                if any(
                    old in change or any(old in other or other in old for other in change) for old in variant.change
                ):
                    raise Incompatible
                change |= variant.change
            merged = Variant(name=" + ".join(v.name for v in group), what="", function=function, change=change)
            try:
                new = merged.compiled()
            except ValueError as error:
                if len(group) > 1:
                    raise Incompatible from error
                raise CourseError(str(error)) from error
            stack.enter_context(replaced(function, new))
        yield


def answers_to(
    assignment: Assignment, calls: dict[str, list[Call]], variants: Sequence[Variant] = ()
) -> dict[Place, list[np.ndarray]]:
    """What the reference with these changes gives.  Errors: CourseError if a change makes it fail."""
    answers: Answers = {}
    with applied(variants), jax.disable_jit(), np.errstate(all="ignore"):
        for name, each in calls.items():
            for index, call in enumerate(each):
                hole = assignment.hole(call.function)
                try:
                    outputs = as_arrays(_plain(hole.answer(call.arguments)), len(hole.outputs))
                    answers[name, index] = normalised(outputs) if hole.is_up_to_scale else outputs
                except Exception as error:
                    who = " + ".join(variant.name for variant in variants) or "the reference"
                    if len(variants) > 1:
                        raise Incompatible from error
                    raise CourseError(
                        f"assignment {assignment.number}: {who} fails in check {name}, {call.about}: {error}"
                    ) from error
    return answers


def _plain(outputs: object) -> object:
    """A record of results as a tuple."""
    return tuple(outputs) if isinstance(outputs, tuple) else outputs


# -- what a good key is ------------------------------------------------------------------------------------------------


def why_refused(assignment: Assignment, key: Key) -> str | None:
    """The first reason, or None if the key grades well."""
    return next(
        filter(None, (test(assignment, key) for test in (_right_passes, _wrong_is_caught, _told_apart, _empty_fails))),
        None,
    )


def failed_checks(assignment: Assignment, key: Key, answers: Answers) -> list[str]:
    """The checks that these answers to all calls do not pass."""
    return [check.name for check in assignment.checks if not _passes(assignment, key, check, answers)]


def _passes(assignment: Assignment, key: Key, check: Check, answers: Answers) -> bool:
    places = [(check.name, index) for index in range(len(key.calls[check.name]))]
    if check.judge is not None:
        return check.judge(calls_of(assignment, key, check.name), [answers[place] for place in places]) is None
    return all(same(answers[place], key.expected[place], key.meaning.get(place)) for place in places)


def calls_of(assignment: Assignment, key: Key, check: str) -> list[Call]:
    """The calls of a key, with named arguments again."""
    return [
        Call(
            call.function,
            dict(zip(assignment.hole(call.function).parameters, call.arguments, strict=True)),
            key.abouts[check, index],
        )
        for index, call in enumerate(key.calls[check])
    ]


def _all_calls(assignment: Assignment, key: Key) -> dict[str, list[Call]]:
    return {name: calls_of(assignment, key, name) for name in key.calls}


def _right_passes(assignment: Assignment, key: Key) -> str | None:
    if failed := failed_checks(assignment, key, key.expected):
        return f"the reference fails {failed[0]}"
    for equivalent in assignment.equivalents:
        answers = answers_to(assignment, _all_calls(assignment, key), (equivalent,))
        if failed := failed_checks(assignment, key, answers):
            return f"{equivalent.name}, which is right, fails {failed[0]}"
    return None


def _wrong_is_caught(assignment: Assignment, key: Key) -> str | None:
    for misconception in assignment.misconceptions:
        if _agree(key.answers[misconception.name], key.expected, key.meaning):
            return f"{misconception.name} is not caught"
    return None


def _told_apart(assignment: Assignment, key: Key) -> str | None:
    for one, other in itertools.combinations(assignment.misconceptions, 2):
        for function in {call.function for calls in key.calls.values() for call in calls}:
            first, second = (_of_function(key, key.answers[m.name], function) for m in (one, other))
            if _agree(first, second, key.meaning) and not _agree(first, key.expected, key.meaning):
                return f"{one.name} and {other.name} give the same results of {function}"
    return None


def _of_function(key: Key, answers: Answers, function: str) -> Answers:
    return {place: outputs for place, outputs in answers.items() if key.function_at(place) == function}


def _agree(answers: Answers, others: Answers, meaning: Answers) -> bool:
    """Whether the first answers are all among the second."""
    return all(same(outputs, others[place], meaning.get(place)) for place, outputs in answers.items())


Filler = Callable[[np.ndarray], np.ndarray]
WITHOUT_CONTENT: tuple[Filler, ...] = (np.zeros_like, np.ones_like)


def _empty_fails(assignment: Assignment, key: Key) -> str | None:
    for fill in WITHOUT_CONTENT:
        answers = {place: [fill(output) for output in outputs] for place, outputs in key.expected.items()}
        passed = {check.name for check in assignment.checks} - set(failed_checks(assignment, key, answers))
        if passed:
            return f"{fill.__name__.removesuffix('_like')} for every result pass {min(passed)}"
    return None
