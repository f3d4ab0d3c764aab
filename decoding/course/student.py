"""A student's repository: where it is, and its public checks."""

import json
from pathlib import Path

from decoding.course.error import CourseError
from decoding.course.grade import Report, grade_file
from decoding.course.key import load

FORMAT = "course/1"
MARKER, SOLUTIONS, KEYS = "course.json", "solutions", "public_checks"


def repository(start: Path) -> Path:
    """The student's repository that a directory is in.  Errors: CourseError outside of one."""
    for directory in (start, *start.parents):
        marker = directory / MARKER
        if not marker.is_file():
            continue
        try:
            content = json.loads(marker.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise CourseError(f"{marker}: expected the record of a course: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CourseError(f"{marker}: expected the record of a course, with format {FORMAT!r}")
        return directory
    raise CourseError(
        f"check: expected to be in a student's repository, got {start}; `gemma4-mtp course new DIR` makes one"
    )


def check(directory: Path, numbers: list[str]) -> list[Report]:
    """The public checks on what is in solutions/; of all assignments if no number is given."""
    names = json.loads((directory / MARKER).read_text(encoding="utf-8"))["assignments"]
    chosen = [name for name in names if not numbers or name[1:3] in {number.zfill(2) for number in numbers}]
    known = {name[1:3] for name in names}
    for number in numbers:
        if number.zfill(2) not in known:
            raise CourseError(f"assignment {number}: expected one of {', '.join(sorted(known))}")
    return [
        grade_file(load(directory / KEYS / f"{name}.npz"), {}, directory / SOLUTIONS / f"{name}.py") for name in chosen
    ]
