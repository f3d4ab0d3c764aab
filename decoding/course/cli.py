"""`gemma4-mtp course`: arguments and help.  What a student's repository does not have is imported where it is used."""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from decoding.course.error import CourseError
from decoding.course.grade import Report
from decoding.course.report import as_csv, as_gradescope, as_json, as_junit, as_text

DESCRIPTION = """\
Assignments on the stages of speculative decoding: a repository for students without the answers, checks that name the
mistake, grades.  Students' code is judged by its results, in a process of its own."""

EPILOG = """\
for teachers, in a checkout of the project:
  gemma4-mtp course list                                  the assignments
  gemma4-mtp course new ../course --assignments 09,03     a repository to hand out
  gemma4-mtp course grade submissions --csv grades.csv --secret-file secret.txt
  gemma4-mtp course stats reports.json                    where the class stands
  gemma4-mtp course verify                                are all assignments consistent?
for students, in the repository that they were given:
  gemma4-mtp course check 09                              the public checks on solutions/a09_*.py

exit codes: 0 all points; 1 not all; 2 a mistake in the arguments or files (one line says which)
"""
OK, NOT_ALL = 0, 1


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    course = commands.add_parser(
        "course",
        help="hand out stages as assignments, and grade them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=layout,
    )
    actions = course.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, line: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=line, description=line, formatter_class=layout)

    action("list", "the assignments")
    new = action("new", "make a student's repository")
    new.add_argument("directory", metavar="DIR", type=Path, help="a new directory")
    new.add_argument("--assignments", metavar="N,N", help="which (all)")
    check = action("check", "the public checks, in a student's repository")
    check.add_argument("numbers", metavar="N", nargs="*", help="which assignments (all)")
    check.add_argument("--json", metavar="FILE", type=Path, help="write the reports; - to standard output")
    grade = action("grade", "grade submissions with all checks")
    grade.add_argument("paths", metavar="SUBMISSION", type=Path, nargs="+", help="a file, or a folder of a class")
    grade.add_argument("--assignment", metavar="N", help="which; else names such as a09_accept.py tell")
    grade.add_argument(
        "--secret-file", metavar="FILE", type=Path, help="its content decides each student's hidden inputs"
    )
    grade.add_argument("--json", metavar="FILE", type=Path, help="reports, for `stats`; - to standard output")
    grade.add_argument("--junit", metavar="FILE", type=Path, help="JUnit XML")
    grade.add_argument("--gradescope", metavar="FILE", type=Path, help="results.json of one submission")
    grade.add_argument("--csv", metavar="FILE", type=Path, help="a line a submission")
    grade.add_argument("-j", "--jobs", metavar="N", type=int, default=2, help="submissions at a time (%(default)s)")
    verify = action("verify", "is each assignment consistent?")
    verify.add_argument("numbers", metavar="N", nargs="*", help="which assignments (all)")
    verify.add_argument("--all-inputs", action="store_true", help="with every set of hidden inputs")
    verify.add_argument("--secret-file", metavar="FILE", type=Path, help="as for grade")
    stats = action("stats", "where a class stands")
    stats.add_argument(
        "paths", metavar="REPORTS", type=Path, nargs="+", help="files of `grade --json`, or folders of them"
    )


def run(args: argparse.Namespace) -> int:
    """Errors: CourseError, OSError."""
    if args.action == "check":
        return _check(args)
    if importlib.util.find_spec("decoding.course.catalogue") is None:
        raise CourseError(
            f"course {args.action}: expected the teacher's copy; this is a student's repository, without answers"
        )
    if importlib.util.find_spec("decoding.oracle.known_bugs") is None:
        raise CourseError(
            f"course {args.action}: expected the folder decoding/oracle/known_bugs, which has the mistakes"
        )
    return {"list": _list, "new": _new, "grade": _grade, "verify": _verify, "stats": _stats}[args.action](args)


def _check(args: argparse.Namespace) -> int:
    from decoding.course.student import check, repository

    reports = check(repository(Path.cwd()), args.numbers)
    _tell(args, reports)
    return OK if all(report.is_complete for report in reports) else NOT_ALL


def _list(args: argparse.Namespace) -> int:
    from decoding.course.catalogue import assignments

    for each in assignments():
        functions = ", ".join(hole.name for hole in each.holes)
        print(f"{each.number}  {each.title:<34} {each.points:>2} points + 1 by hand  {each.hours} h  {functions}")
    return OK


def _new(args: argparse.Namespace) -> int:
    from decoding.course.catalogue import assignment, assignments
    from decoding.course.new import new

    chosen = [assignment(n) for n in args.assignments.split(",")] if args.assignments else assignments()
    new(args.directory.absolute(), chosen)
    print(f"{args.directory}: {', '.join(each.number for each in chosen)}; no piece of an answer was found in it")
    return OK


def _grade(args: argparse.Namespace) -> int:
    from decoding.course.classes import grade_all, submissions_in
    from decoding.course.source import read_source

    if args.jobs < 1:
        raise CourseError(f"--jobs: expected a number from 1 up, got {args.jobs}")
    submissions = [each for path in args.paths for each in submissions_in(path, args.assignment)]
    if len(submissions) == 1:
        read_source(submissions[0].file)  # what is wrong with it is the user's mistake here
    if args.gradescope and len(submissions) != 1:
        raise CourseError(f"--gradescope: expected one submission, got {len(submissions)}")
    reports, failures = grade_all(submissions, _secret(args), args.jobs)
    _tell(args, reports)
    for submission, reason in failures:
        print(f"{submission}: {reason}", file=sys.stderr)
    if args.junit:
        args.junit.write_text(as_junit(reports), encoding="utf-8")
    if args.gradescope:
        args.gradescope.write_text(json.dumps(as_gradescope(reports[0]), indent=1) + "\n", encoding="utf-8")
    if args.csv:
        args.csv.write_text(as_csv(reports, failures), encoding="utf-8")
    return OK if not failures and all(report.is_complete for report in reports) else NOT_ALL


def _verify(args: argparse.Namespace) -> int:
    from decoding.course.catalogue import assignment, assignments
    from decoding.course.verify import verify

    chosen = [assignment(number) for number in args.numbers] if args.numbers else assignments()
    code = OK
    for each in chosen:
        found = verify(each, _secret(args), args.all_inputs)
        right = f"{len(each.misconceptions)} misconceptions told apart, {len(each.equivalents)} right variants pass"
        print(f"{each.number}  {each.title}: {'; '.join(found) if found else right}", flush=True)
        code = NOT_ALL if found else code
    return code


def _stats(args: argparse.Namespace) -> int:
    from decoding.course import stats

    print(stats.as_text(stats.read_reports(args.paths)))
    return OK


def _secret(args: argparse.Namespace) -> str:
    return "" if args.secret_file is None else args.secret_file.read_text(encoding="utf-8").strip()


def _tell(args: argparse.Namespace, reports: list[Report]) -> None:
    content: list[dict[str, Any]] = [as_json(report) for report in reports]
    if args.json is not None and os.fspath(args.json) == "-":
        print(json.dumps(content, indent=1))
        return
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(map(as_text, reports)))
