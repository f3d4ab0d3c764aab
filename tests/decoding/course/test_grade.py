"""Grading, and that a grader which is broken in any of many ways is caught.  Results stand for submissions: nothing is run."""

import dataclasses

import numpy as np
import pytest

from decoding.course import compare, grade
from decoding.course.catalogue import assignment
from decoding.course.key import Key
from decoding.course.keys import judges_of
from decoding.course.sandbox import Outcome

RING = assignment("03")


def graded(key: Key, outcome: Outcome) -> grade.Report:
    return grade.grade(key, judges_of(RING, key), outcome)


def copied(answers):
    return {place: [output.copy() for output in outputs] for place, outputs in answers.items()}


def names_of(report):
    return [mistake.name for mistake in report.misconceptions]


def everything_that_must_hold(key: Key) -> None:
    """What a grader has to do, in short."""
    right = graded(key, Outcome(outputs=copied(key.expected)))
    assert right.is_complete and not right.misconceptions and right.unnamed is None

    for misconception in RING.misconceptions:
        report = graded(key, Outcome(outputs={**key.expected, **key.answers[misconception.name]}))
        assert names_of(report) == [misconception.name] and not report.is_complete and report.unnamed is None
        assert report.misconceptions[0].says == misconception.says
    both = "empty-is-zero + other-slots-cleared"
    mixed = {**key.expected, **key.answers[both]}
    assert sorted(names_of(graded(key, Outcome(outputs=mixed)))) == both.split(" + ")

    other = copied(key.expected)
    for place, outputs in other.items():
        if key.function_at(place) == "write":
            outputs[0] += 0.01  # within no tolerance, and no known mistake
    report = graded(key, Outcome(outputs=other))
    by_name = {check.name: check for check in report.checks}
    assert not names_of(report) and report.unnamed and report.points == 0
    assert (
        "expected" in by_name["random"].message
        and "write, with three rows: buffer[0, 0, 0, 0]" in by_name["random"].message
    )
    assert "expected" not in by_name["values"].message and "too large" in by_name["values"].message

    almost = {
        place: [o + np.float32(1e-6) if o.dtype.kind == "f" else o for o in v] for place, v in key.expected.items()
    }
    assert graded(key, Outcome(outputs={p: v for p, v in almost.items() if p[0] != "read_back"})).points == 7

    wide = {
        place: [o.astype(np.int64 if o.dtype.kind == "i" else np.float64) for o in v]
        for place, v in key.expected.items()
    }
    assert graded(key, Outcome(outputs=wide)).is_complete

    shaped = {place: [output[None] for output in outputs] for place, outputs in key.expected.items()}
    report = graded(key, Outcome(outputs=shaped))
    assert report.points == 0 and "has shape (1, 2, 4); expected (2, 4)" in report.checks[0].message
    for wrong in (np.nan, 0.0, -1.0):
        filled = {
            p: [np.full(o.shape, wrong).astype(o.dtype if wrong == wrong else float) for o in v]
            for p, v in almost.items()
        }
        assert graded(key, Outcome(outputs=filled)).points == 0

    missing = {place: outputs for place, outputs in key.expected.items() if place != ("values", 3)}
    report = graded(key, Outcome(outputs=missing, ended="it did not come back in time"))
    assert report.points == 4 and "did not come back" in report.checks[2].message
    failed = Outcome(outputs=copied(key.expected), errors={("random", 0): "ValueError: no"})
    assert graded(key, failed).points == 8 and "ValueError: no" in graded(key, failed).checks[1].message
    changed = graded(key, Outcome(outputs=copied(key.expected), changed={("example", 1): 0}))
    assert changed.points == 8 and "changes its argument number 1" in changed.checks[0].message
    unwritten = graded(key, Outcome(unwritten={"slot_positions", "write"}))
    assert {check.status for check in unwritten.checks} == {"not written"} and unwritten.points == 0


def test_a_grader_does_all_that(ring_key):
    everything_that_must_hold(ring_key)


def without_pairs(key: Key) -> Key:
    return dataclasses.replace(key, answers={name: a for name, a in key.answers.items() if " + " not in name})


ORIGINAL = {
    name: getattr(grade, name) for name in ("_status", "name_mistakes", "same", "first_difference", "normalised")
}


def passes_always(*arguments):
    return "passed", ""


def status_without(field):
    def status(key, judges, check, outcome):
        return ORIGINAL["_status"](
            key, judges, check, dataclasses.replace(outcome, **{field: type(getattr(outcome, field))()})
        )

    return status


def status_of_what_came(key, judges, check, outcome):
    filled = {**key.expected, **outcome.outputs}
    return ORIGINAL["_status"](key, judges, check, dataclasses.replace(outcome, outputs=filled))


def names_the_first(key, outputs):
    named, explained = ORIGINAL["name_mistakes"](key, outputs)
    return [grade.Named(next(iter(key.says)), next(iter(key.says.values())))] if named else [], explained


def points_for_all(*arguments):
    result = JUDGED(*arguments)
    return dataclasses.replace(result, points=result.of)


JUDGED = grade._judged

BROKEN = {
    "everything passes": (grade, "_status", passes_always),
    "points for what failed": (grade, "_judged", points_for_all),
    "crashes are overlooked": (grade, "_status", status_without("errors")),
    "changed arguments are overlooked": (grade, "_status", status_without("changed")),
    "unwritten functions are overlooked": (grade, "_status", status_without("unwritten")),
    "what did not come back is taken for right": (grade, "_status", status_of_what_came),
    "no mistake is named": (grade, "name_mistakes", lambda key, outputs: ([], False)),
    "always the first mistake is named": (grade, "name_mistakes", names_the_first),
    "hidden values are shown": (
        grade, "first_difference", lambda *a, show_expected: ORIGINAL["first_difference"](*a, show_expected=True)
    ),
    "public values are hidden": (
        grade, "first_difference", lambda *a, show_expected: ORIGINAL["first_difference"](*a, show_expected=False)
    ),
    "any difference is within the tolerance": (compare, "TOLERANCE", 1e3),
    "no difference is": (compare, "TOLERANCE", 0.0),
    "shapes are not compared": (compare, "wrong_form", lambda got, expected: None),
    "types must be the reference's": (
        compare, "wrong_form", lambda got, expected: "no" if got.dtype != expected.dtype else None
    ),
    "explained mistakes have a fingerprint": (
        grade, "name_mistakes", lambda key, outputs: (ORIGINAL["name_mistakes"](key, outputs)[0], False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_grader_is_caught(name, ring_key, monkeypatch):
    monkeypatch.setattr(*BROKEN[name])
    with pytest.raises((AssertionError, ValueError)):
        everything_that_must_hold(ring_key)


def test_a_grader_without_pairs_is_caught(ring_key):
    with pytest.raises((AssertionError, KeyError)):
        everything_that_must_hold(without_pairs(ring_key))


def test_weights_are_compared_up_to_their_scale():
    weights = [np.float32([[2, 6], [0, 0]])]
    np.testing.assert_array_equal(compare.normalised(weights)[0], [[0.25, 0.75], [0, 0]])


def test_a_fingerprint_is_that_of_the_results(ring_key):
    one, other = copied(ring_key.expected), copied(ring_key.expected)
    one[("random", 0)][0] += 1
    other[("random", 0)][0] += 2
    marks = [grade.fingerprint(ring_key, answers) for answers in (one, copied(one), other)]
    assert marks[0] == marks[1] != marks[2]
