"""Compare an engine's tensors with the expected ones: an error in units of the tolerance for each, and what is missing."""

import difflib
import enum
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decoding.oracle.engine import OracleError
from decoding.oracle.golden import Dump, Entry, read_safetensors, readable

BEYOND_MEASURE = 1e9  # units: the upper limit, also for an infinite error, which JSON could not hold


class Status(enum.Enum):
    AGREES = "agrees"
    DIFFERS = "differs"
    MISSING = "missing"  # and required
    NOT_GIVEN = "not given"  # and not required


class Result(NamedTuple):
    """One tensor."""

    name: str  # CASE/STAGE/WHAT
    status: Status
    units: float | None = None  # error over tolerance; for whole numbers, how many differ
    note: str = ""  # where the error is largest, and the expected value there

    @property
    def case(self) -> str:
        return self.name.split("/")[0]

    @property
    def stage(self) -> str:
        return self.name.split("/")[1]

    @property
    def where(self) -> str:
        """Step or round and layer, for the table; the name of a tensor outside all of these."""
        what = self.name.split("/", 2)[2]
        found = re.match(r"((?:step|round)\d+)?/?(layers\.\d+)?", what)
        return " ".join(filter(None, found.groups() if found else ())) or what


class Report(NamedTuple):
    results: list[Result]  # in the order of computation
    notes: tuple[str, ...] = ()
    theirs: Mapping[str, np.ndarray] = {}  # the compared tensors

    @property
    def agrees(self) -> bool:
        """All given tensors agree, and no required one is missing."""
        return not any(result.status in (Status.DIFFERS, Status.MISSING) for result in self.results)

    def first_divergence(self, case: str) -> Result | None:
        """The first tensor that differs.  `load` comes last: it repeats results of `forward` and `draft`, which show more."""
        wrong = [it for it in self.results if it.case == case and it.status is Status.DIFFERS]
        return min(wrong, key=lambda it: it.stage == "load", default=None)


def check(
    dump: Dump,
    theirs: Mapping[str, np.ndarray],
    *,
    cases: Collection[str] = (),
    stages: Collection[str] = (),
    source: str = "theirs",
) -> Report:
    """Compare `theirs` with the dump.

    cases, stages: what to compare; unless given, every case of which anything is given, and all of its stages.
    Errors:        OracleError for names that the dump lacks, for a wrong shape or kind of number, and for NaN.
    """
    check_names(dump, theirs, source)
    touched = {name.split("/")[0] for name in theirs}
    in_scope = [
        entry
        for entry in dump.entries.values()
        if entry.case in (cases or touched) and (not stages or entry.stage in stages)
    ]
    if not any(entry.name in theirs for entry in in_scope):
        raise OracleError(
            f"{source}: holds nothing that was asked for; expected names such as {next(iter(dump.entries))} "
            f"(CASE/STAGE/WHAT, all in {dump.directory / 'manifest.json'})"
        )
    results = []
    for case in dict.fromkeys(entry.case for entry in in_scope):
        expected = dump.expected(case)
        results += [
            compare(entry, expected[entry.name], theirs.get(entry.name), source)
            for entry in in_scope
            if entry.case == case
        ]
    return Report(results, theirs={entry.name: theirs[entry.name] for entry in in_scope if entry.name in theirs})


def compare(entry: Entry, expected: np.ndarray, theirs: np.ndarray | None, source: str = "theirs") -> Result:
    """Errors: OracleError if `theirs` has another shape, another kind of number, or NaN."""
    if theirs is None:
        return Result(entry.name, Status.MISSING if entry.required else Status.NOT_GIVEN)
    check_array(entry, theirs, source)
    expected, theirs = np.asarray(expected, np.float64), np.asarray(theirs, np.float64)
    error = errors(entry, expected, theirs)
    if not error.size:
        return Result(entry.name, Status.AGREES, 0.0)
    worst = np.unravel_index(np.argmax(error), error.shape)
    units = units_of(entry, error, expected)
    at = ", ".join(map(str, worst))
    note = f"at [{at}] {theirs[worst]:.6g}, expected {expected[worst]:.6g}"
    return Result(entry.name, Status.AGREES if units <= entry.tolerance.units_allowed else Status.DIFFERS, units, note)


def errors(entry: Entry, expected: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|theirs - expected|; 0 past the end of a row, and for unscored tokens that are low enough."""
    with np.errstate(invalid="ignore"):  # inf - inf
        error = np.where(theirs == expected, 0.0, np.abs(theirs - expected))
    if entry.tolerance.rule == "clustered":
        is_scored = np.isfinite(expected)
        least = np.min(np.where(is_scored, expected, np.inf), axis=-1, keepdims=True)
        error = np.where(~is_scored & (theirs < least), 0.0, error)
    if entry.lengths:
        is_inside = np.arange(error.shape[1]) < np.array(entry.lengths)[:, None]
        error = np.where(is_inside.reshape(*is_inside.shape, *[1] * (error.ndim - 2)), error, 0.0)
    return error


def units_of(entry: Entry, error: np.ndarray, expected: np.ndarray) -> float:
    """The largest of these errors in units of the tolerance; of whole numbers, how many are wrong."""
    rule, tolerance, _ = entry.tolerance
    if rule == "exact":
        return float((error > 0).sum())
    if rule != "absolute":
        tolerance *= float(np.abs(expected[np.isfinite(expected)]).max(initial=0) or 1.0)
    return min(float(error.max(initial=0) / tolerance), BEYOND_MEASURE)


def check_names(dump: Dump, theirs: Iterable[str], source: str) -> None:
    unknown = [name for name in theirs if name not in dump.entries]
    if unknown:
        near = difflib.get_close_matches(unknown[0], dump.entries, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise OracleError(
            f"{source}: no tensor {unknown[0]} in the dump{more}{hint}; names are CASE/STAGE/WHAT, as in "
            f"{dump.directory / 'manifest.json'}"
        )


def check_array(entry: Entry, theirs: np.ndarray, source: str) -> None:
    if theirs.shape != entry.shape:
        raise OracleError(
            f"{source}: {entry.name} has shape {list(theirs.shape)}, expected {list(entry.shape)}; "
            "tutorials/reference/oracle_format.md describes the axes"
        )
    is_whole = np.issubdtype(theirs.dtype, np.integer) or theirs.dtype == bool
    if entry.tolerance.rule == "exact" and not is_whole:
        raise OracleError(f"{source}: {entry.name} is {theirs.dtype}, expected whole numbers such as int32")
    if entry.tolerance.rule != "exact" and (is_whole or np.iscomplexobj(theirs)):
        raise OracleError(f"{source}: {entry.name} is {theirs.dtype}, expected floating-point numbers such as float32")
    if entry.tolerance.rule != "exact" and (wrong := np.isnan(np.float64(theirs))).any():
        at = ", ".join(map(str, np.argwhere(wrong)[0]))
        raise OracleError(
            f"{source}: {entry.name} is NaN at {wrong.sum()} of {wrong.size} elements, first at [{at}]; expected numbers "
            "everywhere (a query that sees nothing? a slot that was never written?)"
        )


def read_theirs(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of all such files in a directory.

    Errors: OracleError if there is no file, if one is damaged or unreadable, and if two hold the same name.
    """
    with readable(path):
        is_directory = path.is_dir()
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if is_directory else []
    if not files:
        what = "no *.safetensors in it" if is_directory else "no such file or directory"
        raise OracleError(
            f"{path}: {what}; give a safetensors file with tensors CASE/STAGE/WHAT, or a directory of such files"
        )
    out: dict[str, np.ndarray] = {}
    for file in files:
        tensors = read_safetensors(file)
        if twice := sorted(out.keys() & tensors.keys()):
            raise OracleError(f"{file}: {twice[0]} is also in another file of {path}; give each tensor once")
        out |= tensors
    if not out:
        raise OracleError(f"{path}: holds no tensor; give tensors CASE/STAGE/WHAT")
    return out
