"""The pages in tutorials/assignments, generated from the records: `python -m decoding.course.pages` writes them."""

from pathlib import Path

import numpy as np

import decoding
from decoding.course.assignment import Assignment, Call
from decoding.course.catalogue import assignments
from decoding.course.make_key import inputs_of

DIRECTORY = Path(decoding.__file__).parents[1] / "tutorials" / "assignments"


def page(assignment: Assignment) -> str:
    """Markdown: the question, the task, signatures, how it is checked, what to write by hand, hints."""
    parts = [
        f"# Assignment {assignment.number}: {assignment.title.lower()}",
        f"**{assignment.question}**",
        f"{assignment.hours} hours. Read first: {'; '.join(assignment.read)}.",
        "## What to write",
        assignment.task,
    ]
    for hole in assignment.holes:
        docstring = "\n".join(f"    {line}".rstrip() for line in hole.docstring.splitlines())
        parts.append(f'```python\ndef {hole.name}{hole.signature}:\n    """\n{docstring}\n    """\n```')
    parts += [
        f"Your file is `solutions/{assignment.name}.py`. Write NumPy, jax.numpy or plain loops: results are compared, not "
        "code. Floats may differ by 2e-5 of the largest value. The packages `gemma4`, `drafter` and `decoding` cannot be "
        "imported there.",
        "## An example",
        example(assignment),
        "## How it is checked",
        checks_table(assignment),
        "```sh\ngemma4-mtp course check " + assignment.number + "\n```",
        f"By hand, one point more, graded by a person: {assignment.by_hand}",
        "## If you are stuck",
        "\n".join(f"{number}. {hint}" for number, hint in enumerate(assignment.hints, 1)),
    ]
    return "\n\n".join(parts) + "\n"


def checks_table(assignment: Assignment) -> str:
    rows = ["| check | what it asks | points |", "|---|---|---|"]
    for check in assignment.checks:
        hidden = "" if check.is_public else " (hidden)"
        rows.append(f"| {check.name}{hidden} | {check.what} | {check.points} |")
    return "\n".join(rows)


def example(assignment: Assignment) -> str:
    """The calls of the public check `example`, as code that one can run."""
    calls = inputs_of(assignment, "", 0, 0)["example"]
    lines = [_as_code(assignment, call) for call in calls]
    return "```python\n" + "\n\n".join(lines) + "\n```\n\n`gemma4-mtp course check` shows the expected results."


def _as_code(assignment: Assignment, call: Call) -> str:
    hole = assignment.hole(call.function)
    width = max(map(len, hole.parameters))
    lines = [f"# {call.about}"]
    lines += [f"{name:<{width}} = {_literal(call.arguments[name])}" for name in hole.parameters]
    return "\n".join([*lines, f"{', '.join(hole.outputs)} = {hole.name}({', '.join(hole.parameters)})"])


def _literal(value: object) -> str:
    if isinstance(value, np.ndarray):
        kind = {"i": "np.int32", "f": "np.float32", "b": "np.bool_"}[value.dtype.kind]
        return f"{kind}({value.tolist()})"
    return f"given.{value.name}" if hasattr(value, "name") else repr(value)  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for assignment in assignments():
        (DIRECTORY / f"{assignment.name}.md").write_text(page(assignment), encoding="utf-8")


if __name__ == "__main__":
    main()
