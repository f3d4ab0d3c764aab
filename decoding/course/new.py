"""Make a student's repository: the packages with holes, the files to fill in, the pages and the public checks.

What gives the answer away is not in it: the oracle with its known bugs, the tests, the catalogue of assignments, the history.
A check for leaks runs over the finished repository; if it finds something, nothing is left.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import decoding
from decoding.course.assignment import Assignment, Cut, Hole
from decoding.course.error import CourseError
from decoding.course.key import save
from decoding.course.keys import key_of
from decoding.course.leaks import leaks
from decoding.course.pages import page
from decoding.course.stub import module_of, solution_file, with_holes
from decoding.course.student import FORMAT, KEYS, MARKER, SOLUTIONS

ROOT = Path(decoding.__file__).parents[1]
PACKAGES = ("gemma4", "drafter", "decoding")
FILES = ("pyproject.toml", "LICENSE", "NOTICE")
WITHHELD = (
    "decoding/oracle",
    "decoding/bench",
    "decoding/planning",
    "decoding/trace",
    *(f"decoding/course/{name}" for name in ("catalogue", "assignment.py", "keys.py", "make_key.py", "leaks.py")),
    *(f"decoding/course/{name}" for name in ("new.py", "pages.py", "stub.py", "verify.py", "stats.py")),
    "decoding/shipped_pair/recipe.py",
    "decoding/shipped_pair/measure.py",
)

README = """\
# Speculative decoding, stage by stage

Functions of this copy of gemma4-mtp are yours to write. Each has a page and a file:

| assignment | page | your file | hours |
|---|---|---|---|
{rows}

Install it once, in this folder:

```sh
python3 -m venv .venv && .venv/bin/pip install -q -e .
```

Check your work (the public checks; the hidden ones run when you hand in), and run the whole program with it:

```sh
.venv/bin/gemma4-mtp course check {first}
.venv/bin/gemma4-mtp generate "In the beginning" --loop plain --temperature 1
```

Hand in your file from `solutions/`. You may write NumPy, jax.numpy or loops: results are compared, not code. Files in
jax.numpy run fastest inside `generate`. [glossary.md](glossary.md) explains the words.
"""


def new(directory: Path, chosen: Sequence[Assignment]) -> None:
    """Write the repository.

    Errors: CourseError if the directory exists, or if an answer is found in what was written; nothing is left then.
    """
    if not (ROOT / "pyproject.toml").is_file() or not (ROOT / "tutorials").is_dir():
        raise CourseError(f"new: expected a checkout of the project, got an installed copy at {ROOT}")
    if directory.exists():
        raise CourseError(f"{directory}: it exists; name a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        _copy_packages(scratch, chosen)
        _cut(scratch, chosen)
        _copy_glossary(scratch, chosen)
        _write_student_files(scratch, chosen)
        if hits := leaks(chosen, ROOT, scratch):
            shown = "; ".join(str(hit) for hit in hits[:3])
            more = f" (and {len(hits) - 3} more)" if len(hits) > 3 else ""
            raise CourseError(f"new: nothing was written, because an answer would leak: {shown}{more}")
        for assignment in chosen:
            save(key_of(assignment).public(), scratch / KEYS / f"{assignment.name}.npz")
        os.chmod(scratch, 0o755)
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_packages(directory: Path, chosen: Sequence[Assignment]) -> None:
    withheld = {*WITHHELD, *(file for assignment in chosen for file in assignment.withheld)}

    def ignored(folder: str, names: list[str]) -> list[str]:
        here = Path(folder).relative_to(ROOT).as_posix()
        return [name for name in names if name == "__pycache__" or f"{here}/{name}" in withheld]

    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, directory / file)


def _cut(directory: Path, chosen: Sequence[Assignment]) -> None:
    """Make the holes, file by file.  Two assignments may cut one function: the hole wins over a cut."""
    changes: dict[Path, dict[str, Hole | Cut | None]] = {}
    for assignment in chosen:
        for change in (*assignment.cuts, *assignment.holes):
            file, name = module_of(change.function, directory)
            by_name = changes.setdefault(file, {})
            if isinstance(change, Hole) or name not in by_name:
                by_name[name] = change
        for function in assignment.removed:
            file, name = module_of(function, directory)
            changes.setdefault(file, {}).setdefault(name, None)
    for file, by_name in changes.items():
        file.write_text(with_holes(file.read_text(encoding="utf-8"), by_name), encoding="utf-8")
    for assignment in chosen:
        for path, replacements in assignment.rewritten.items():
            file = directory / path
            text = file.read_text(encoding="utf-8")
            for old, replacement in replacements.items():
                if old not in text:
                    raise CourseError(f"assignment {assignment.number}: expected this text in {path}: {old!r:.80}")
                text = text.replace(old, replacement)
            file.write_text(text, encoding="utf-8")


def _copy_glossary(directory: Path, chosen: Sequence[Assignment]) -> None:
    """The glossary without the terms that define an answer."""
    withheld = tuple(f"| {term}" for assignment in chosen for term in assignment.terms)
    lines = (ROOT / "tutorials" / "glossary.md").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if not withheld or not line.startswith(withheld))
    (directory / "glossary.md").write_text(kept.replace("](../", "]("), encoding="utf-8")


def _write_student_files(directory: Path, chosen: Sequence[Assignment]) -> None:
    rows = []
    for name in (SOLUTIONS, "pages", KEYS):
        (directory / name).mkdir()
    for assignment in chosen:
        (directory / SOLUTIONS / f"{assignment.name}.py").write_text(solution_file(assignment), encoding="utf-8")
        (directory / "pages" / f"{assignment.name}.md").write_text(page(assignment), encoding="utf-8")
        rows.append(
            f"| {assignment.number} {assignment.title} | [page](pages/{assignment.name}.md) "
            f"| [{assignment.name}.py]({SOLUTIONS}/{assignment.name}.py) | {assignment.hours} |"
        )
    readme = README.format(rows="\n".join(rows), first=chosen[0].number)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    marker = {"format": FORMAT, "assignments": [assignment.name for assignment in chosen]}
    (directory / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
