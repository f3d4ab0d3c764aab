"""Answer keys, computed once and kept in the user's cache directory; and the judges of an assignment's properties."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

import decoding
from decoding.course.assignment import Assignment, Check
from decoding.course.grade import Judges
from decoding.course.key import Key, load, save
from decoding.course.make_key import calls_of, make_key


def key_of(assignment: Assignment, secret: str = "", battery: int = 0) -> Key:
    """The key, from the cache if the sources are those that it was computed from."""
    file = cache_directory() / f"{assignment.name}-{_version(assignment, secret, battery)}.npz"
    if file.exists():
        return load(file)
    key = make_key(assignment, secret, battery)
    try:
        save(key, file)
    except OSError:  # no place to keep it: it is computed again next time
        pass
    return key


def judges_of(assignment: Assignment, key: Key) -> Judges:
    def judge(check: Check, outputs: Sequence[Sequence[np.ndarray]]) -> str | None:
        assert check.judge is not None
        return check.judge(calls_of(assignment, key, check.name), [list(each) for each in outputs])

    judges: dict[str, Callable[[Sequence[Sequence[np.ndarray]]], str | None]] = {
        check.name: functools.partial(judge, check) for check in assignment.checks if check.judge is not None
    }
    return judges


def cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "gemma4-mtp" / "course"


def _version(assignment: Assignment, secret: str, battery: int) -> str:
    """A digest of all that a key depends on: the sources of the packages, the versions, and the course."""
    digest = hashlib.sha256(f"{assignment.number}\n{secret}\n{battery}\n{jax.__version__} {np.__version__}".encode())
    for file, source in _sources().items():
        if not file.startswith(CATALOGUE) or file in (f"{CATALOGUE}{assignment.name}.py", f"{CATALOGUE}inputs.py"):
            digest.update(file.encode())
            digest.update(source)
    return digest.hexdigest()[:20]


CATALOGUE = "decoding/course/catalogue/"
# What no key depends on.
WITHOUT = ("decoding/cli/", "decoding/bench/", "decoding/shipped_pair/", "decoding/oracle/")
ONLY = ("decoding/oracle/known_bugs/", CATALOGUE, *(f"decoding/course/{name}.py" for name in (
    "assignment", "child", "compare", "given", "key", "make_key"
)))  # fmt: skip


@functools.cache
def _sources() -> dict[str, bytes]:
    root = Path(decoding.__file__).parents[1]
    found = {}
    for package in ("gemma4", "drafter", "decoding"):
        for file in sorted((root / package).rglob("*.py")):
            name = file.relative_to(root).as_posix()
            if name.startswith(ONLY) or not name.startswith((*WITHOUT, "decoding/course/")):
                found[name] = file.read_bytes()
    return found
