"""A folder of submissions: which files, whose, and all of them graded side by side."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from decoding.course.catalogue import NAMES, assignment
from decoding.course.error import CourseError
from decoding.course.grade import Report, grade_file
from decoding.course.keys import judges_of, key_of
from decoding.course.make_key import battery_of


class Submission(NamedTuple):
    student: str
    number: str  # of the assignment
    file: Path


def submissions_in(path: Path, number: str | None) -> list[Submission]:
    """The submissions that a path has: a file; or a folder of files, or of a folder for each student.

    number: the assignment; without it, the name of each file tells, as in a09_accept.py.
    Errors: CourseError if there is none, or if it is not known of which assignment one is.
    """
    if not path.exists():
        raise CourseError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [Submission(path.stem, number or number_of(path), path)]
    found = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            found += list(_of_student(entry, number))
        elif entry.suffix in (".py", ".ipynb"):
            found.append(Submission(entry.stem, number or number_of(entry), entry))
    if not found:
        raise CourseError(
            f"{path}: expected submissions (files whose names end in .py, or a folder a student), got none"
        )
    return found


def _of_student(folder: Path, number: str | None) -> Iterator[Submission]:
    files = sorted([*folder.glob("*.py"), *folder.glob("solutions/*.py"), *folder.glob("*.ipynb")])
    for file in files:
        known = re.match(r"a(\d\d)", file.name)
        if number is not None and known is not None and known[1] != number.zfill(2):
            continue
        if number is not None or known is not None:
            yield Submission(folder.name, number or number_of(file), file)


def number_of(file: Path) -> str:
    """The assignment that a file's name begins with."""
    found = re.match(r"a(\d\d)(?!\d)", file.name)
    if found is None or found[1] not in {name[1:3] for name in NAMES}:
        raise CourseError(f"{file}: its name does not tell the assignment, as a09_accept.py does; add --assignment N")
    return found[1]


def grade_all(
    submissions: list[Submission],
    secret: str,
    jobs: int,
    on_report: Callable[[Report], object] = lambda report: None,
) -> tuple[list[Report], list[tuple[str, str]]]:
    """The reports, and the submissions that could not be run with the reason.  One never stops the others."""

    def one(submission: Submission) -> Report | tuple[str, str]:
        record = assignment(submission.number)
        key = key_of(record, secret, battery_of(secret, submission.student))
        try:
            report = grade_file(key, judges_of(record, key), submission.file, submission=submission.student)
        except CourseError as error:
            return submission.student, str(error)
        on_report(report)
        return report

    needed = {(s.number, battery_of(secret, s.student)) for s in submissions}
    for number, battery in sorted(needed):  # each once, before processes run side by side
        key_of(assignment(number), secret, battery)
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(one, submissions))
    reports = [result for result in results if isinstance(result, Report)]
    return reports, [result for result in results if not isinstance(result, Report)]
