"""A dump: checkpoints, inputs and expected tensors of every case, with a manifest.  The page
`tutorials/reference/oracle_format.md` describes it.

DIR/manifest.json
DIR/CASE/target, drafter [, target_with_unused_kv]     checkpoints in Hugging Face layout
DIR/CASE/inputs.safetensors, expected.safetensors      tensors CASE/STAGE/WHAT
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import gemma4
from decoding.oracle import cases
from decoding.oracle.cases import CASES, Case
from decoding.oracle.engine import OracleError
from decoding.oracle.record import OF_THE_CONVENTION, STAGES, record
from decoding.oracle.tolerance import REASONS, RULES, Tolerance, is_required, tolerance_of
from drafter.config import TRANSFORMERS
from gemma4 import CheckpointError
from gemma4.checkpoints.directories import new_directory

FORMAT, FORMAT_VERSION = "gemma4-mtp oracle", 1
MANIFEST, INPUTS, EXPECTED = "manifest.json", "inputs.safetensors", "expected.safetensors"
RAGGED = ("prefill", "chunked", "stepwise")  # stages whose rows end at different lengths


class Entry(NamedTuple):
    """One expected tensor, as the manifest describes it."""

    name: str  # CASE/STAGE/WHAT
    shape: tuple[int, ...]
    dtype: str
    tolerance: Tolerance
    required: bool
    lengths: tuple[int, ...] | None  # of the rows along the second axis, where they differ

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
        """Errors: OracleError if the file is damaged, or is not what the manifest says."""
        file = self.directory / case / EXPECTED
        tensors = read_safetensors(file)
        for name, entry in self.entries.items():
            if entry.case == case and (name not in tensors or tensors[name].shape != entry.shape):
                raise OracleError(
                    f"{file}: {name} {list(entry.shape)} is not in it, though the manifest lists it; dump again"
                )
        return tensors


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
        raise OracleError(f"--out {directory}: cannot be written ({error}); name a disk with free space") from error


def write_case(case: Case, directory: Path, stages: Collection[str]) -> list[Entry]:
    """Checkpoints, inputs and expected tensors of one case.  Stages without the drafter's convention are written once."""
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
        "stages": {name: " ".join((stage.__doc__ or "").split()) for name, stage in STAGES.items()},
        "reasons": REASONS,
        "tensors": [as_json(entry) for entry in entries],
        "sha256": {
            file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
        },
    }


def text_of(manifest: Mapping[str, Any]) -> str:
    """JSON with one line for each tensor, file, stage and case."""

    def one_a_line(opening: str, items: Iterable[str], closing: str) -> str:
        return opening + "\n  " + ",\n  ".join(items) + "\n " + closing

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
        "sampling": {name: dataclasses.asdict(sampling) for name, sampling in cases.SETTINGS.items()},
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
    """Of this code (a digest of its source, so that every change is another version) and of the packages it uses."""
    source = hashlib.sha256()
    for package in ("gemma4", "drafter", "decoding"):
        root = Path(gemma4.__file__).parents[1] / package
        for file in sorted(root.rglob("*.py")):
            source.update(file.relative_to(root.parent).as_posix().encode() + b"\0" + file.read_bytes())
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "flax", "safetensors")}
    return {"source_sha256": source.hexdigest(), **packages}


@contextlib.contextmanager
def removed_if_killed(directory: Path) -> Iterator[None]:
    """Remove `directory` when Ctrl-C, SIGTERM or SIGHUP (a closed terminal) ends the process.

    Not by an exception: one that is raised inside a callback of JAX is lost.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_use = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, end) for number in in_use}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_dump(directory: str | os.PathLike) -> Dump:
    """Errors: OracleError if the directory is absent or no dump, and if a file is missing or was changed."""
    directory = Path(directory)
    file = directory / MANIFEST
    with readable(directory):
        if not directory.is_dir():
            raise OracleError(f"{directory}: no such directory; `gemma4-mtp oracle dump --out {directory}` writes one")
        if not file.is_file():
            raise OracleError(f"{directory}: not a dump ({MANIFEST} is missing); `gemma4-mtp oracle dump` writes one")
    try:
        manifest = json.loads(file.read_text())
        found = manifest["format"], manifest["format_version"]
        is_ours = found == (FORMAT, FORMAT_VERSION)
        entries = entries_from(manifest) if is_ours else {}
        digests = dict(manifest["sha256"]) if is_ours else {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError) as error:
        raise OracleError(f"{file}: not the manifest of a dump ({error!r}); dump again into a new directory") from error
    if not is_ours:
        raise OracleError(f"{file}: expected format {FORMAT!r} version {FORMAT_VERSION}, got {found}; dump again")
    check_files(directory, digests)
    return Dump(directory, manifest, entries)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Errors: OracleError if the file system refuses to look at `path`: no permission, or a name that is too long."""
    try:
        yield
    except OSError as error:
        raise OracleError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def entries_from(manifest: Mapping[str, Any]) -> dict[str, Entry]:
    """Errors: ValueError for an unknown case or stage; others from `entry_from`."""
    if unknown := dict(manifest["cases"]).keys() - CASES.keys():
        raise ValueError(f"unknown case {min(unknown)}")
    entries = {item["name"]: entry_from(item) for item in manifest["tensors"]}
    for name in entries:
        case, stage, _ = name.split("/", 2)
        if case not in manifest["cases"] or stage not in STAGES:
            raise ValueError(f"unknown case or stage of {name}")
    return entries


def entry_from(item: Mapping[str, Any]) -> Entry:
    """Errors: KeyError, TypeError or ValueError for a field that is missing or malformed."""
    lengths = item.get("lengths")
    tolerance = Tolerance(item["rule"], float(item["tolerance"]), item["reason"])
    sizes = [*item["shape"], *(lengths or ())]
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"sizes of {item['name']!r:.80}: {sizes!r:.80}")
    texts = {name: item[name] for name in ("name", "dtype", "rule", "reason")}
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(item["required"], bool):
        raise ValueError(f"fields of {item['name']!r:.80}: {texts!r:.200}, required {item['required']!r:.20}")
    if (
        tolerance.rule not in RULES
        or not (tolerance.value > 0 or tolerance.rule == "exact")
        or tolerance.value == math.inf
    ):
        raise ValueError(f"tolerance of {item['name']}: {tolerance.rule!r:.40} {tolerance.value:g}")
    return Entry(
        item["name"], tuple(item["shape"]), item["dtype"], tolerance, item["required"], lengths and tuple(lengths)
    )


def check_files(directory: Path, digests: Mapping[str, str]) -> None:
    for name, digest in digests.items():
        file = directory / name
        with readable(file):
            if not file.is_file():
                raise OracleError(
                    f"{file}: missing from the dump, though its manifest lists it; copy it again, or dump again"
                )
            content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise OracleError(f"{file}: changed since the dump (its SHA-256 differs from the manifest's); dump again")


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Errors: OracleError if the file is not a complete safetensors file, or holds a dtype that NumPy lacks."""
    try:
        with safe_open(file, "numpy") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise OracleError(
            f"{file}: not a complete safetensors file ({error}); write it again (is it truncated, or another format?)"
        ) from error
    except (TypeError, AttributeError, KeyError) as error:
        raise OracleError(
            f"{file}: holds a dtype that NumPy cannot read ({error}); write float32 and int32 tensors"
        ) from error
