"""What a student's repository must not say: the expressions and sentences of the functions that it has holes for."""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from decoding.course.assignment import Assignment
from decoding.course.stub import found, module_of

MIN_EXPRESSION = 22  # characters without spaces; shorter ones are ordinary
MIN_SENTENCE = 40
TEXTS = (".py", ".md", ".ipynb", ".txt", ".json", ".toml", ".cfg")


class Leak(NamedTuple):
    assignment: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file} tells a part of assignment {self.assignment}: {self.text}"


def answer_of(assignment: Assignment, root: Path) -> set[str]:
    """The pieces of the reference that give the answer away, without spaces."""
    pieces = set(code_of(assignment, root))
    for hole in assignment.holes:
        file, name = module_of(hole.function, root)
        node = found(file.read_text(encoding="utf-8"), name)
        docstring = ast.get_docstring(node) or ""
        pieces |= {squeezed(s) for s in re.split(r"(?<=[.:;])\s", docstring) if len(squeezed(s)) >= MIN_SENTENCE}
    # What a copy has to say in place of the answer, and what is excused.
    said = [squeezed(change.body) for change in (*assignment.holes, *assignment.cuts)]
    said += [squeezed(hole.docstring) for hole in assignment.holes]
    return {
        piece for piece in pieces - set(map(squeezed, assignment.excused)) if not any(piece in text for text in said)
    }


def code_of(assignment: Assignment, root: Path) -> Iterator[str]:
    """The expressions of the functions that become holes."""
    for hole in assignment.holes:
        file, name = module_of(hole.function, root)
        yield from expressions(found(file.read_text(encoding="utf-8"), name))


def expressions(node: ast.FunctionDef) -> Iterator[str]:
    """The longer expressions of a function's body."""
    for statement in node.body:
        for part in ast.walk(statement):
            if isinstance(part, ast.expr) and not isinstance(part, (ast.Constant, ast.JoinedStr, ast.Tuple)):
                text = squeezed(ast.unparse(part))
                if len(text) >= MIN_EXPRESSION:
                    yield text


def leaks(assignments: Iterable[Assignment], root: Path, directory: Path) -> list[Leak]:
    """What the files of a directory tell; `root` has the reference."""
    answers = {assignment.number: answer_of(assignment, root) for assignment in assignments}
    return list(_leaks(answers, directory))


def _leaks(answers: dict[str, set[str]], directory: Path) -> Iterator[Leak]:
    for file in sorted(directory.rglob("*")):
        if file.suffix not in TEXTS or not file.is_file() or file.stat().st_size > 5 << 20:
            continue
        text = squeezed(readable(file))
        for number, pieces in answers.items():
            for piece in sorted(pieces):
                if piece in text:
                    yield Leak(number, file.relative_to(directory).as_posix(), piece)


def readable(file: Path) -> str:
    """A file's text; of a notebook, sources and outputs."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix != ".ipynb":
        return text
    cells = json.loads(text).get("cells", [])
    return "\n".join("".join(cell.get("source", "")) + json.dumps(cell.get("outputs", "")) for cell in cells)


def squeezed(text: str) -> str:
    """Without spaces, and with one kind of quotes: another layout is the same code."""
    return re.sub(r"\s+", "", text).replace('"', "'")
