"""Is the course consistent?  For each assignment, everything that a record promises is tried with the grader itself."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from decoding.course.assignment import Assignment
from decoding.course.error import CourseError
from decoding.course.grade import Report, grade, grade_file
from decoding.course.key import Answers, Key
from decoding.course.keys import judges_of, key_of
from decoding.course.leaks import answer_of, code_of, squeezed
from decoding.course.make_key import BATTERIES, answers_to, calls_of
from decoding.course.new import ROOT
from decoding.course.pages import page
from decoding.course.sandbox import Outcome
from decoding.course.stub import solution_file

LONGEST_SENTENCE = 260
SHARED = 14  # characters without spaces that a sentence may not share with the answer
FORMULAS = ("<", "/", "max(", "min(", "==", "[", "%")


def problems(assignment: Assignment, secret: str = "", battery: int = 0) -> Iterator[str]:
    """What is wrong with an assignment, in sentences; none if it may be handed out."""
    try:
        key = key_of(assignment, secret, battery)
    except CourseError as error:
        yield str(error)
        return
    yield from _grading(assignment, key)
    yield from _stub(assignment, key)
    yield from _texts(assignment)


def verify(assignment: Assignment, secret: str = "", every_battery: bool = False) -> list[str]:
    batteries = range(BATTERIES if every_battery else 1)
    return [problem for battery in batteries for problem in problems(assignment, secret, battery)]


def report_on(assignment: Assignment, key: Key, answers: Answers) -> Report:
    """The report that a submission with these results gets."""
    return grade(key, judges_of(assignment, key), Outcome(outputs=dict(answers)))


def _grading(assignment: Assignment, key: Key) -> Iterator[str]:
    right = report_on(assignment, key, key.expected)
    if not right.is_complete or right.misconceptions:
        yield f"the reference has {right.points} of {right.of} points"
    calls = {name: calls_of(assignment, key, name) for name in key.calls}
    for equivalent in assignment.equivalents:
        report = report_on(assignment, key, answers_to(assignment, calls, (equivalent,)))
        if not report.is_complete or report.misconceptions:
            yield f"{equivalent.name}, which is right, has {report.points} of {report.of} points"
    for misconception in assignment.misconceptions:
        report = report_on(assignment, key, answers_to(assignment, calls, (misconception.variant,)))
        named = [one.name for one in report.misconceptions]
        if report.is_complete or named != [misconception.name]:
            yield f"{misconception.name} has {report.points} of {report.of} points and is told {named}"
    for name, answers in key.answers.items():
        if " + " not in name:
            continue
        report = report_on(assignment, key, {**key.expected, **answers})
        if unexpected := {one.name for one in report.misconceptions} - set(name.split(" + ")):
            yield f"{name} is told {sorted(unexpected)}"


def _stub(assignment: Assignment, key: Key) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / f"{assignment.name}.py"
        file.write_text(solution_file(assignment), encoding="utf-8")
        report = grade_file(key, judges_of(assignment, key), file)
    if report.points or any(check.status != "not written" for check in report.checks):
        yield f"the file before anything is written has {report.points} points"


def _texts(assignment: Assignment) -> Iterator[str]:
    answer = answer_of(assignment, ROOT)
    code = set(code_of(assignment, ROOT))
    if not code:
        yield "the answer has no piece that a search for leaks could find"
    public = {"the page": page(assignment), "the file to fill in": solution_file(assignment)}
    for name, text in public.items():
        if piece := next((piece for piece in sorted(answer) if piece in squeezed(text)), None):
            yield f"{name} tells a part of the answer: {piece}"
    for misconception in assignment.misconceptions:
        says = misconception.says
        if len(says) > LONGEST_SENTENCE:
            yield f"{misconception.name}: its sentence has {len(says)} characters, at most {LONGEST_SENTENCE} are read"
        if formula := next((sign for sign in FORMULAS if sign in says), None):
            yield f"{misconception.name}: its sentence has a formula ({formula})"
        text = squeezed(says)
        shared = (piece[i : i + SHARED] for piece in code for i in range(len(piece) - SHARED + 1))
        if part := next((part for part in shared if part in text), None):
            yield f"{misconception.name}: its sentence shares {part} with the answer"
