"""A dump: checkpoints, inputs and expected tensors of every case, with a manifest.  `tutorials/oracle_format.md` describes it.

DIR/manifest.json
DIR/CASE/target, drafter [, target_with_unused_kv]     checkpoints in Hugging Face layout
DIR/CASE/inputs.safetensors, expected.safetensors      tensors CASE/STAGE/WHAT
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import gemma4
from decoding.oracle import cases
from decoding.oracle.cases import CASES, Case
from decoding.oracle.errors import OracleError
from decoding.oracle.record import OF_THE_CONVENTION, STAGES, record
from decoding.oracle.tolerance import REASONS, Tolerance, is_required, tolerance_of
from drafter.config import TRANSFORMERS
from gemma4 import CheckpointError
from gemma4.storage import new_directory

FORMAT, FORMAT_VERSION = "gemma4-mtp oracle", 1
MANIFEST, INPUTS, EXPECTED = "manifest.json", "inputs.safetensors", "expected.safetensors"
RAGGED = ("prefill", "chunked", "stepwise")  # stages whose tensors end where a row ends


class Entry(NamedTuple):
    """One expected tensor, as the manifest describes it."""

    name: str  # CASE/STAGE/WHAT
    shape: tuple[int, ...]
    dtype: str
    tolerance: Tolerance
    required: bool
    lengths: tuple[int, ...] | None  # of the rows, where these end at different places along the second axis

    @property
    def case(self) -> str:
        return self.name.split("/")[0]

    @property
    def stage(self) -> str:
        return self.name.split("/")[1]

    @property
    def what(self) -> str:
        return self.name.split("/", 2)[2]


class Dump(NamedTuple):
    directory: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]  # in the order of computation

    def expected(self, case: str) -> dict[str, np.ndarray]:
        return read_safetensors(self.directory / case / EXPECTED)


# -- writing -----------------------------------------------------------------------------------------------------------


def dump(
    directory: str | os.PathLike, names: Collection[str] = tuple(CASES), stages: Collection[str] = tuple(STAGES)
) -> None:
    """Write the given stages of the given cases.  Errors: OracleError unless the directory is new or empty."""
    try:
        with new_directory(directory) as scratch, removed_if_killed(scratch):
            entries = [entry for name in names for entry in write_case(CASES[name], scratch / name, stages)]
            (scratch / MANIFEST).write_text(text_of(manifest_of(scratch, names, entries)))
    except CheckpointError as error:
        raise OracleError(f"--out {error}") from error
    except OSError as error:
        raise OracleError(f"--out {directory}: cannot be written ({error}); give a place with room") from error


def write_case(case: Case, directory: Path, stages: Collection[str]) -> list[Entry]:
    """Checkpoints, inputs and expected tensors of one case.  Only the default convention has the stages that none changes."""
    directory.mkdir()
    case.write(directory)
    stages = [stage for stage in stages if case.convention == TRANSFORMERS or stage in OF_THE_CONVENTION]
    tensors = record(case, stages, directory=directory, jit=True)
    for file, values in ((INPUTS, case.inputs_of(stages)), (EXPECTED, tensors)):
        save_file({f"{case.name}/{name}": np.ascontiguousarray(x) for name, x in values.items()}, directory / file)
    return [entry_of(case, name, value) for name, value in tensors.items()]


def entry_of(case: Case, name: str, value: np.ndarray) -> Entry:
    lengths = cases.LENGTHS if name.split("/")[0] in RAGGED else None
    return Entry(
        f"{case.name}/{name}", value.shape, value.dtype.name, tolerance_of(name, value), is_required(name), lengths
    )


def manifest_of(directory: Path, names: Collection[str], entries: list[Entry]) -> dict[str, Any]:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "cases": {name: description(CASES[name]) for name in names},
        "stages": {name: " ".join(stage.__doc__.split()) for name, stage in STAGES.items()},
        "reasons": REASONS,
        "tensors": [as_json(entry) for entry in entries],
        "sha256": {
            file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
        },
    }


def text_of(manifest: Mapping[str, Any]) -> str:
    """JSON with one line a tensor, file, stage and case."""
    one_a_line = lambda opening, items, closing: opening + "\n  " + ",\n  ".join(items) + "\n " + closing
    fields = []
    for name, value in manifest.items():
        if isinstance(value, dict):
            text = one_a_line("{", [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()], "}")
        elif isinstance(value, list):
            text = one_a_line("[", map(json.dumps, value), "]")
        else:
            text = json.dumps(value)
        fields.append(f"{json.dumps(name)}: {text}")
    return "{\n " + ",\n ".join(fields) + "\n}\n"


def description(case: Case) -> dict[str, Any]:
    return {
        "layout": case.layout,
        "convention": case.convention,
        "seed": case.seed,
        "sliding_window": cases.WINDOW,
        "draft_length": cases.GAMMA,
        "chunk": cases.CHUNK,
        "max_new_tokens": cases.MAX_NEW_TOKENS,
        "emit_eos": cases.EOS,
        "sampling": {name: sampling._asdict() for name, sampling in cases.SETTINGS.items()},
    }


def as_json(entry: Entry) -> dict[str, Any]:
    rule, value, reason = entry.tolerance
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "rule": rule,
        "tolerance": value,
        "reason": reason,
        "required": entry.required,
        **({"lengths": list(entry.lengths)} if entry.lengths else {}),
    }


def versions() -> dict[str, str]:
    """Of this code (a digest of its source: whoever changes a line has another version) and of what it computes with."""
    source = hashlib.sha256()
    for package in ("gemma4", "drafter", "decoding"):
        root = Path(gemma4.__file__).parents[1] / package
        for file in sorted(root.rglob("*.py")):
            source.update(file.relative_to(root.parent).as_posix().encode() + b"\0" + file.read_bytes())
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "flax", "safetensors")}
    return {"source_sha256": source.hexdigest(), **packages}


@contextlib.contextmanager
def removed_if_killed(directory: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM remove `directory` before they end the process.

    Not by way of an exception: that may come up inside a callback of JAX's, and be lost there.
    """

    def end(number, _frame):
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_dump(directory: str | os.PathLike) -> Dump:
    """Errors: OracleError if there is no such directory, if it is no dump, and if a file is missing or was changed."""
    directory = Path(directory)
    if not directory.is_dir():
        raise OracleError(f"{directory}: no such directory; `gemma4-mtp oracle dump --out {directory}` writes one")
    file = directory / MANIFEST
    if not file.is_file():
        raise OracleError(f"{directory}: not a dump, for {MANIFEST} is missing; `gemma4-mtp oracle dump` writes one")
    try:
        manifest = json.loads(file.read_text())
        found = manifest["format"], manifest["format_version"]
        entries = {item["name"]: entry_from(item) for item in manifest["tensors"]} if found[0] == FORMAT else {}
        digests = manifest["sha256"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise OracleError(f"{file}: not the manifest of a dump ({error!r}); dump again into a new directory") from error
    if found != (FORMAT, FORMAT_VERSION):
        raise OracleError(f"{file}: expected format {FORMAT!r} version {FORMAT_VERSION}, got {found}; dump again")
    check_files(directory, digests)
    return Dump(directory, manifest, entries)


def entry_from(item: Mapping[str, Any]) -> Entry:
    lengths = item.get("lengths")
    tolerance = Tolerance(item["rule"], item["tolerance"], item["reason"])
    return Entry(
        item["name"], tuple(item["shape"]), item["dtype"], tolerance, item["required"], lengths and tuple(lengths)
    )


def check_files(directory: Path, digests: Mapping[str, str]) -> None:
    for name, digest in digests.items():
        file = directory / name
        if not file.is_file():
            raise OracleError(f"{file}: missing from the dump, whose manifest lists it; copy it again, or dump again")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise OracleError(f"{file}: cannot be read ({error}); look at its permissions, or dump again") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise OracleError(f"{file}: not as it was dumped (its SHA-256 differs from the manifest's); dump again")


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Errors: OracleError if the file is not a whole safetensors file, or holds a dtype that NumPy does not know."""
    try:
        with safe_open(file, "numpy") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise OracleError(
            f"{file}: not a whole safetensors file ({error}); write it again (is it cut short, or another format?)"
        ) from error
    except (TypeError, AttributeError, KeyError) as error:
        raise OracleError(
            f"{file}: holds a dtype that cannot be read ({error}); write float32 and int32 tensors"
        ) from error
