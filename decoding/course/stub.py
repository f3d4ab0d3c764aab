"""Cut functions out of the reference: the file that a student edits, and the source in which holes call it.

Both are made with `ast` from the reference as it is; its files have no marks.
"""

import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path

from decoding.course.assignment import Assignment, Cut, Hole
from decoding.course.error import CourseError


def solution_file(assignment: Assignment) -> str:
    """What stands in solutions/aNN_*.py before a student begins."""
    parts = [
        f'"""Assignment {assignment.number}: {assignment.title.lower()}.  The page is pages/{assignment.name}.md."""'
    ]
    parts.append("import jax.numpy as jnp  # or NumPy, or plain Python\nimport numpy as np")
    for hole in assignment.holes:
        docstring = textwrap.indent(f'"""{hole.docstring}\n"""', "    ")
        message = f'raise NotImplementedError("assignment {assignment.number}: {hole.name}")'
        parts.append(f"\ndef {hole.name}{hole.signature}:\n{docstring}\n    {message}")
    return "\n\n".join(parts) + "\n"


def module_of(function: str, root: Path) -> tuple[Path, str]:
    """The file that a dotted name is in, and the name inside it.  Errors: CourseError if there is none."""
    parts = function.split(".")
    for length in range(len(parts) - 1, 0, -1):
        for file in (root.joinpath(*parts[:length]).with_suffix(".py"), root.joinpath(*parts[:length], "__init__.py")):
            if file.is_file():
                return file, ".".join(parts[length:])
    raise CourseError(f"{function}: no such function in the reference")


def found(source: str, name: str) -> ast.FunctionDef:
    """The function's definition; `Class.method` for a method.  Errors: CourseError if it is not there."""
    body: list[ast.stmt] = ast.parse(source).body
    *classes, function = name.split(".")
    for wanted in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == wanted), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return node
    raise CourseError(f"{name}: no such function in the reference")


def with_holes(source: str, changes: Mapping[str, Hole | Cut | None]) -> str:
    """The source in which each named function has its new body, or is gone (None).

    Decorators, signatures and all else stay as they are.
    """
    lines = source.splitlines(keepends=True)
    nodes = sorted(
        ((found(source, name), change) for name, change in changes.items()), key=lambda item: -item[0].lineno
    )
    for node, change in nodes:
        assert node.end_lineno is not None
        if change is None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines[first - 1 : node.end_lineno] = []
            continue
        indent = " " * (node.col_offset + 4)
        docstring = change.docstring if change.docstring is not None else ast.get_docstring(node)
        body = (
            f'"""{docstring}\n"""\n' if docstring and "\n" in docstring else f'"""{docstring}"""\n' if docstring else ""
        )
        new = textwrap.indent(f"{body}{change.body.strip()}\n", indent, lambda line: bool(line.strip()))
        lines[node.body[0].lineno - 1 : node.end_lineno] = [new]
    return "".join(lines)
