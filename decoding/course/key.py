"""The answer key of one assignment, as data: inputs, expected results, and those of every misconception.

`make_key.py` computes it from the reference.  Grading needs the key alone, and a student's copy has the part of it whose
expected values may be shown.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from decoding.course.error import CourseError
from decoding.course.given import Given
from decoding.course.sandbox import PlannedCall

FORMAT = "course-key/1"
Place = tuple[str, int]  # a check, and the number of its call
Answers = dict[Place, list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class KeyCheck:
    name: str
    what: str
    points: int
    is_public: bool
    is_judged: bool  # by a property, not by equal values


@dataclasses.dataclass
class Key:
    name: str  # "a09_accept"
    title: str
    checks: list[KeyCheck]
    calls: dict[str, list[PlannedCall]]  # of each check
    abouts: dict[Place, str]
    expected: Answers
    meaning: Answers  # which elements count; only where not all do
    answers: dict[str, Answers]  # of each misconception, and of two at once as "one + other"; in checks by value
    says: dict[str, str]
    up_to_scale: list[str] = dataclasses.field(default_factory=list)  # functions whose results are compared normalised

    @property
    def number(self) -> str:
        return self.name[1:3]

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)

    def by_value(self) -> Iterable[Place]:
        """The calls whose results must be equal."""
        return [
            (check.name, index)
            for check in self.checks
            if not check.is_judged
            for index in range(len(self.calls[check.name]))
        ]

    def function_at(self, place: Place) -> str:
        return self.calls[place[0]][place[1]].function

    def public(self) -> "Key":
        """What students may have: the checks whose expected values may be shown."""
        checks = [check for check in self.checks if check.is_public]
        names = {check.name for check in checks}

        def only(answers: Answers) -> Answers:
            return {place: outputs for place, outputs in answers.items() if place[0] in names}

        return dataclasses.replace(
            self,
            checks=checks,
            calls={name: calls for name, calls in self.calls.items() if name in names},
            abouts={place: about for place, about in self.abouts.items() if place[0] in names},
            expected=only(self.expected),
            meaning=only(self.meaning),
            answers={name: only(answers) for name, answers in self.answers.items()},
        )


def save(key: Key, file: Path) -> None:
    """Write the key as one file of arrays.  A reader never sees half of it."""
    arrays: dict[str, np.ndarray] = {}

    def stored(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"{len(arrays)}"] = value
            return {"array": len(arrays) - 1}
        return {"given": list(value)} if isinstance(value, Given) else value

    def kept(answers: Answers) -> list[Any]:
        return [[*place, [stored(output) for output in outputs]] for place, outputs in answers.items()]

    text = {
        "format": FORMAT,
        "name": key.name,
        "title": key.title,
        "checks": [dataclasses.asdict(check) for check in key.checks],
        "calls": {
            name: [[call.function, [stored(a) for a in call.arguments], list(call.outputs)] for call in calls]
            for name, calls in key.calls.items()
        },
        "abouts": [[*place, about] for place, about in key.abouts.items()],
        "expected": kept(key.expected),
        "meaning": kept(key.meaning),
        "answers": {name: kept(answers) for name, answers in key.answers.items()},
        "says": key.says,
        "up_to_scale": key.up_to_scale,
    }
    arrays["key"] = np.array(json.dumps(text))
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".npz")
    with os.fdopen(descriptor, "wb") as stream:
        np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
    os.replace(name, file)


def load(file: Path) -> Key:
    """Errors: CourseError if it is no key."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        text = json.loads(str(arrays.pop("key")))
        if text["format"] != FORMAT:
            raise ValueError(f"its format is {text['format']}")
        return _from_text(text, lambda index: arrays[str(index)])
    except FileNotFoundError:
        raise CourseError(f"{file}: no such key") from None
    except Exception as error:
        raise CourseError(f"{file}: expected an answer key of `gemma4-mtp course`, got {error!s:.80}") from error


def _from_text(text: dict[str, Any], array: Callable[[int], np.ndarray]) -> Key:
    def value(stored: Any) -> Any:
        if isinstance(stored, dict):
            return array(stored["array"]) if "array" in stored else Given(*stored["given"])
        return stored

    def answers(stored: list[Any]) -> Answers:
        return {(check, index): [value(output) for output in outputs] for check, index, outputs in stored}

    return Key(
        name=text["name"],
        title=text["title"],
        checks=[KeyCheck(**check) for check in text["checks"]],
        calls={
            name: [
                PlannedCall(function, list(map(value, arguments)), outputs) for function, arguments, outputs in calls
            ]
            for name, calls in text["calls"].items()
        },
        abouts={(check, index): about for check, index, about in text["abouts"]},
        expected=answers(text["expected"]),
        meaning=answers(text["meaning"]),
        answers={name: answers(stored) for name, stored in text["answers"].items()},
        says=text["says"],
        up_to_scale=text["up_to_scale"],
    )
