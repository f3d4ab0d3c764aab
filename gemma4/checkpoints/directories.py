"""Checkpoint directories: JSON files in and out, checksums, and directories that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2**26  # an index of 31B's tensors has 0.1 MB
CHECKSUMS = "gemma4-mtp.sha256.json"  # beside what we write: the SHA-256 of each file, by its path from there


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file or tensor and what to do."""


def read_config(directory: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """config.json through `parse`.  Errors: CheckpointError if absent, not JSON, or refused by `parse` (ValueError)."""
    file = directory / "config.json"
    if not directory.is_dir():
        found = (
            "no such directory" if not os.path.lexists(directory) else f"expected a directory, got {kind_of(directory)}"
        )
        raise CheckpointError(f"{directory}: {found}; give a local one with config.json and weights")
    check_file(file, "a checkpoint directory has config.json beside its weights")
    return parsed(file, parse)


def check_file(file: Path, if_missing: str) -> None:
    """Errors: CheckpointError unless `file` is a regular file or a link to one.  (Reading a FIFO or a device may never end.)"""
    if not os.path.lexists(file):
        raise CheckpointError(f"{file}: missing; {if_missing}")
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a file, got {kind_of(file)}; fetch it again")


def kind_of(path: Path) -> str:
    """What something that is not the expected file or directory is, in words."""
    kinds = {
        "a link to nothing": not path.exists(),
        "a directory": path.is_dir(),
        "a file": path.is_file(),
        "a FIFO": path.is_fifo(),
        "a socket": path.is_socket(),
    }
    return next((kind for kind, applies in kinds.items() if applies), "a device")


def parsed(file: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """A JSON object through `parse`.  Errors: CheckpointError if the file is not JSON, or refused by `parse` (ValueError)."""
    try:
        return parse(read_json(file))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def write_config(directory: Path, config: dict[str, Any], name: str = "config.json") -> None:
    (directory / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Errors: CheckpointError if the file is larger than any such file is, not UTF-8, or not a JSON object."""
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{file}: expected at most {MAX_JSON_BYTES:,} bytes of JSON, got {size:,}; fetch the file again"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _unreadable(file, error) from error
    except (ValueError, RecursionError) as error:  # the latter for a hundred thousand brackets
        raise CheckpointError(f"{file}: not valid JSON ({error!s:.200}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


def is_inside(name: str) -> bool:
    """Whether a path that a file names cannot lead out of that file's directory (but for links)."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def write_checksums(directory: Path) -> None:
    """The file CHECKSUMS, of all files in `directory` and below."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    checksums = {file.relative_to(directory).as_posix(): _checksum(file) for file in files}
    write_config(directory, checksums, CHECKSUMS)


def check_checksums(directory: Path) -> None:
    """Compare the files in `directory` with CHECKSUMS there.  Without it there is nothing to compare: others do not write it.

    Each file is read once for this.  Errors: CheckpointError that names the file which is missing or has changed.
    """
    if not os.path.lexists(directory / CHECKSUMS):
        return
    check_file(directory / CHECKSUMS, "")
    expected: Mapping[str, Any] = read_json(directory / CHECKSUMS)
    for name, checksum in expected.items():
        if not is_inside(name) or not isinstance(checksum, str):
            raise CheckpointError(
                f"{directory / CHECKSUMS}: expected the SHA-256 of files of this directory, got {name!r:.80}: "
                f"{checksum!r:.80}; copy the file again"
            )
        check_file(directory / name, f"it was saved, {CHECKSUMS} names it; copy it again")
    for name, checksum in expected.items():
        if checksum != (actual := _checksum(directory / name)):
            raise CheckpointError(
                f"{directory / name}: not the file that was saved (expected SHA-256 {checksum:.16}..., got {actual:.16}...); "
                f"copy it again, or remove {CHECKSUMS} if you have changed the file yourself"
            )


def _checksum(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{file}: cannot be read ({error.strerror or error}); copy it again, or see its permissions")


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling that takes the name `directory` if the block succeeds, and is removed if it fails.

    Before the rename all files are on the disk, with the permissions of the user's umask.  Missing parents are made, and
    removed with the sibling.  A process that is killed leaves its sibling behind; the next save to `directory` removes it.

    Errors: CheckpointError if `directory` exists and is not an empty directory (nothing is ever overwritten), if another
            process writes it meanwhile, and if it cannot be written, for example on a full disk.
    """
    directory = Path(directory).expanduser().resolve()
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; give a new directory, or remove this one first")
    scratch = directory.parent / f"{_scratch_prefix(directory)}{os.getpid()}.{uuid.uuid4().hex}"
    new_parents = [parent for parent in scratch.parents if not parent.exists()]  # the deepest first
    try:
        scratch.mkdir(parents=True)
        _remove_abandoned(directory)
        yield scratch
        _sync(scratch)
        _rename(scratch, directory)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):  # never made, or somebody has put something there since
                parent.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise CheckpointError(
                f"{directory}: cannot be written ({reason}); make room there, or give another place"
            ) from error
        raise


def _scratch_prefix(directory: Path) -> str:
    """Names the host, because a process number means nothing on another one."""
    return f".{directory.name}.{socket.gethostname()[:32]}."


def _remove_abandoned(directory: Path) -> None:
    """Siblings of `new_directory` whose process has ended."""
    pattern = re.compile(re.escape(_scratch_prefix(directory)) + r"(\d+)\.[0-9a-f]{32}")
    for path in directory.parent.iterdir():
        if (found := pattern.fullmatch(path.name)) and not _is_running(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # os.kill would end the process
        return True
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _sync(scratch: Path) -> None:
    """All files on the disk, readable for those for whom the umask makes new files readable."""
    mode = scratch.stat().st_mode & 0o666
    for path in [*scratch.rglob("*"), scratch]:
        if path.is_file():
            path.chmod(mode)
        if path.is_file() or os.name == "posix":  # elsewhere a directory cannot be opened
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _rename(scratch: Path, directory: Path) -> None:
    try:
        if directory.exists():
            directory.rmdir()
        scratch.rename(directory)
    except OSError as error:
        if directory.exists():
            raise CheckpointError(
                f"{directory}: another process wrote it meanwhile; give a new directory, or remove this one first"
            ) from error
        raise
