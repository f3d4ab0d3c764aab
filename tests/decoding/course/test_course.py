"""The whole way: every assignment is consistent, right solutions have all points, and a student's repository runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from decoding.course.catalogue import NAMES

ROOT = Path(__file__).parents[3]
SOLUTIONS = Path(__file__).parent / "solutions"


def command(*arguments: object, cwd: Path = ROOT, path: Path = ROOT) -> subprocess.CompletedProcess:
    """`gemma4-mtp`, in a process without the shape checks of tests: students' functions and tiny models are not ours."""
    environment = {**os.environ, "PYTHONPATH": str(path), "XLA_FLAGS": "", "NO_COLOR": "1"}
    full = [sys.executable, "-m", "gemma4", *map(str, arguments)]
    return subprocess.run(full, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_is_consistent_and_right_solutions_pass(name):
    """The reference, right variants and solutions by hand have all points, the empty file none, each misconception its name."""
    verified = command("course", "verify", name[1:3])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    solutions = sorted(SOLUTIONS.glob(f"{name[:3]}_*.py"))
    assert len(solutions) >= 2
    graded = command("course", "grade", *solutions)
    assert graded.returncode == 0, graded.stdout + graded.stderr


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("course") / "students"
    made = command("course", "new", directory)
    assert made.returncode == 0, made.stderr
    return directory


@pytest.mark.slow
def test_a_students_repository_has_no_answers(students):
    files = {file.relative_to(students).as_posix() for file in students.rglob("*") if file.is_file()}
    assert not [
        f
        for f in files
        if "known_bugs" in f or "catalogue" in f or f.startswith(("tests/", ".git/", "decoding/oracle"))
    ]
    assert {f"solutions/{name}.py" for name in NAMES} <= files
    refused = command("course", "verify", cwd=students, path=students)
    assert refused.returncode == 2 and "this is a student's repository" in refused.stderr


@pytest.mark.slow
def test_a_students_repository_runs_with_what_is_written(students, tmp_path):
    """First nothing is written; then right answers in jax.numpy, with NumPy in one place, give the reference's text."""
    copy = tmp_path / "copy"
    shutil.copytree(students, copy)

    def here(*arguments: object) -> subprocess.CompletedProcess:
        return command(*arguments, cwd=copy, path=copy)

    checked = here("course", "check")
    assert checked.returncode == 1 and checked.stdout.count("not written") >= 2 * len(NAMES)
    begun = here("generate", "In the beginning")
    assert begun.returncode == 2 and "is not written yet" in begun.stderr and begun.stderr.count("\n") == 1
    for name in NAMES:
        shutil.copy(SOLUTIONS / f"{name[:3]}_jnp.py", copy / "solutions" / f"{name}.py")
    for name in ("a01_attention", "a09_accept", "a10_bookkeeping"):
        shutil.copy(SOLUTIONS / f"{name[:3]}_numpy.py", copy / "solutions" / f"{name}.py")
    assert here("course", "check").returncode == 0
    arguments = ("generate", "In the beginning", "--max-new-tokens", "12", "--temperature", "1", "--quiet")
    theirs, ours = here(*arguments), command(*arguments)
    assert theirs.returncode == 0 and theirs.stdout == ours.stdout, theirs.stderr[-2000:]


@pytest.mark.slow
def test_new_refuses_to_write_what_tells_an_answer(tmp_path):
    """Without one of an assignment's cuts, nothing is left."""
    script = f"""
import dataclasses, pathlib
from decoding.course import new
from decoding.course.catalogue import assignment
from decoding.course.error import CourseError
uncut = dataclasses.replace(assignment("09"), cuts=(), removed=(), rewritten={{}})
try:
    new.new(pathlib.Path({str(tmp_path / "leaking")!r}), [uncut])
except CourseError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "nothing was written, because an answer would leak: decoding/stages/accept_block.py" in ran.stdout, (
        ran.stderr
    )
    assert not list(tmp_path.iterdir())
