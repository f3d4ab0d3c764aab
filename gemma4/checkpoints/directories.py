"""Checkpoint directories: JSON files in and out, and directories that appear whole or not at all."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file or tensor and what to do."""


def read_config(directory: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """config.json through `parse`.  Errors: CheckpointError if absent, not JSON, or refused by `parse` (ValueError)."""
    file = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a local one with config.json and weights")
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; a checkpoint directory has config.json beside its weights")
    return parsed(file, parse)


def parsed(file: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """A JSON object through `parse`.  Errors: CheckpointError if the file is not JSON, or refused by `parse` (ValueError)."""
    try:
        return parse(read_json(file))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # the latter for a hundred thousand brackets
        raise CheckpointError(f"{file}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling that takes the name `directory` if the block succeeds, and is removed if it fails.

    Missing parents are made, and removed with it.  A signal that ends the process without an exception (SIGTERM, by default)
    leaves the sibling behind: `.NAME.` and 32 digits.  A library does not install signal handlers.

    Errors: CheckpointError if `directory` exists and is not an empty directory: nothing is ever overwritten.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; give a new directory, or remove this one first")
    scratch = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    new_parents = [parent for parent in scratch.parents if not parent.exists()]  # the deepest first
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if directory.exists():
            directory.rmdir()  # empty, as checked above
        scratch.rename(directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):  # never made, or somebody has put something there since
                parent.rmdir()
        raise
