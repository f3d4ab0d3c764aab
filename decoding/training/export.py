"""The finished directory DIR/pair: written beside its place, and put there as a whole.  Only what is ours is replaced."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from decoding.training.pair import STAGES
from gemma4.checkpoints.directories import CheckpointError

EXPORTED = "exported.txt"  # under DIR: the digest of each pair that `export` has written to DIR/pair, one a line
UNFINISHED = ".pair."


def export(write: Callable[[Path], None], out: Path) -> Path:
    """DIR/pair, filled by `write`.  An older one is replaced once the new one is complete.

    A process that is killed leaves its scratch directory behind; the next export removes it.
    Errors: as `check_replaceable`.
    """
    for abandoned in out.glob(f"{UNFINISHED}*"):
        shutil.rmtree(abandoned)
    pair, scratch = out / "pair", out / f"{UNFINISHED}{uuid.uuid4().hex}"
    new, old = scratch / "new", scratch / "old"
    new.mkdir(parents=True)
    try:
        write(new)
        check_replaceable(out)  # once more: training takes hours
        with (out / EXPORTED).open("a") as lines:  # before the rename: a pair without its line could not be replaced
            lines.write(digest(new) + "\n")
        if pair.exists():
            pair.rename(old)
        new.rename(pair)
    finally:
        shutil.rmtree(scratch)
    return pair


def training_log(out: Path) -> str:
    """The logs of all stages that there are, as JSON lines."""
    logs = [out / name / "log.jsonl" for name in STAGES]
    return "".join(log.read_text(encoding="utf-8") for log in logs if log.exists())


def check_replaceable(out: Path) -> None:
    """Errors: CheckpointError unless DIR/pair is absent, empty, or byte for byte what `export` wrote there."""
    pair, exported = out / "pair", out / EXPORTED
    if not os.path.lexists(pair) or (pair.is_dir() and not any(pair.iterdir())):
        return
    if not (pair.is_dir() and exported.exists() and digest(pair) in exported.read_text().split()):
        raise CheckpointError(
            f"{pair}: is not as this recipe left it, and would be replaced; move it elsewhere, or give another --out"
        )


def digest(directory: Path) -> str:
    """SHA-256 of a directory: the names of everything in it, and the contents of its files."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        total.update(os.fsencode(path.relative_to(directory)) + b"\0")
        if path.is_file():
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
