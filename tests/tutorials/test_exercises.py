"""The checks of the exercises accept the right answers and refuse wrong ones, with a sentence each.

A tutorial `NN_name` has three exercises, and for them
  tutorials/exercises/name.py     check_1, check_2, check_3: each prints one line by `say`, and returns whether it is right;
  tutorials/answers/NN_name.py    a script that calls the checks with the right answers and asserts that they return True;
  tests/tutorials/wrong_answers/name.py
                                  WRONG = {1: [...], 2: [...], 3: [...]}: at least two wrong answers for each check, every one
                                  a tuple of the check's arguments.
The folder tutorials/ is on the path, as it is for a notebook.  A new tutorial needs no change here.
"""

import importlib
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted(path.stem for path in (ROOT / "tutorials").glob("[0-9]*.py"))
EXERCISES = (1, 2, 3)
each_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS)


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tutorials")


def named(tutorial: str) -> tuple[int, str]:
    """The number of a tutorial, and its name without it."""
    number, name = tutorial.split("_", 1)
    return int(number), name


def wrong_answers(tutorial: str) -> dict[int, list[tuple]]:
    return importlib.import_module(f"tests.tutorials.wrong_answers.{named(tutorial)[1]}").WRONG


def verdicts(printed: str) -> list[tuple[str, str]]:
    """The exercise and the verdict of each line of `say`."""
    return re.findall(r"^(\d+\.\d) (right|not yet): \S", printed, re.MULTILINE)


@each_tutorial
def test_every_exercise_has_two_wrong_answers(tutorial):
    assert {number: len(wrong) >= 2 for number, wrong in wrong_answers(tutorial).items()} == dict.fromkeys(
        EXERCISES, True
    )


@pytest.mark.slow
@each_tutorial
def test_the_answers_are_right(tutorial, capsys):
    runpy.run_path(str(ROOT / "tutorials" / "answers" / f"{tutorial}.py"), run_name="__main__")
    number = named(tutorial)[0]
    assert verdicts(capsys.readouterr().out) == [(f"{number}.{exercise}", "right") for exercise in EXERCISES]


@pytest.mark.slow
@pytest.mark.parametrize("exercise", EXERCISES)
@each_tutorial
def test_wrong_answers_are_refused(tutorial, exercise, capsys):
    number, name = named(tutorial)
    check = getattr(importlib.import_module(f"exercises.{name}"), f"check_{exercise}")
    for answer in wrong_answers(tutorial)[exercise]:
        assert check(*answer) is False, f"{answer} is taken as right"
        assert verdicts(capsys.readouterr().out) == [(f"{number}.{exercise}", "not yet")], answer
