"""Live conformance: the same checks through an adapter, and the distribution of sampled text by enumeration."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from typing import Any, cast

import numpy as np

from decoding.oracle.compare import Report, Result, Status, check
from decoding.oracle.engine import FUNCTIONS, Engine, Load, OracleError
from decoding.oracle.golden import Dump
from decoding.oracle.law_check import TOLERANCE, distances
from decoding.oracle.record import STAGES, recorder

# The enumeration, which no file can hold: stage -> the case and stage under which the report lists it.
LAWS = {"accept": "acceptance/law", "accept_block": "acceptance/law_by_block"}
# Stages in which an engine returns all its taps, perhaps more than ours.  Elsewhere an extra name is a mistake, such as a round
# after the last.
TAPPED = ("forward", "prefill", "chunked", "stepwise", "draft")


def find(spec: str) -> Load:
    """The `load` function that `module:name` names.  The working directory is on the module path, behind what is installed, so
    that a file torch.py there does not stand for the package.

    Errors: OracleError if the module does not import, or has no such function.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise OracleError(f"--adapter {spec}: expected module:function, such as decoding.oracle.adapters.ours:load")
    sys.path.append(directory := os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever an import may raise; SystemExit would pass for our exit code
        raise OracleError(
            f"--adapter {spec}: cannot import {module_name} ({type(error).__name__}: {error}); is it installed, or in this "
            "directory?"
        ) from error
    finally:
        sys.path.remove(directory)
    load = getattr(module, name, None)
    if not callable(load):
        raise OracleError(
            f"--adapter {spec}: {module_name} has no function {name}; expected "
            "load(target_dir, drafter_dir, convention) -> engine, see decoding/oracle/engine.py"
        )
    return cast(Load, load)


def check_adapter(dump: Dump, spec: str, **settings: Any) -> Report:
    """`check_engine` for the engine of an adapter, `module:name`.  Errors: OracleError also if that does not import."""
    return check_engine(dump, find(spec), source=f"--adapter {spec}", **settings)


def check_engine(
    dump: Dump,
    load: Load,
    *,
    cases: Collection[str] = (),
    stages: Collection[str] = (),
    source: str = "the engine",
    on_stage: Callable[[str], None] = lambda name: None,
) -> Report:
    """Every stage of every case of an engine, against the dump; and the distribution of its sampled text.

    load:   opens the engine of a case.  By NotImplementedError it may refuse a convention, and the engine a method: the first
            is noted, the second counts as missing, and the rest of the stage is compared.
    source: what an error calls the engine.
    Taps that the dump lacks are noted.
    Errors: OracleError for an engine that lacks a function, or fails.
    """
    load = complete(called("load", source, load), source)
    results, notes, given, engine = [], [], {}, None
    for case in cases or dump.manifest["cases"]:
        asked = [name for name in STAGES if (not stages or name in stages) and has(dump, case, name)]
        theirs: dict[str, np.ndarray] = {}
        try:
            this = recorder(case, load=load, directory=dump.directory / case)
        except NotImplementedError as error:
            notes.append(f"{case}: not offered{because(error)}")
            continue
        engine = this.engine
        for stage in asked:
            on_stage(f"{case}/{stage}")
            try:
                recorded = called(f"{case}, stage {stage}", source, this.stage)(stage)
            except NotImplementedError as error:
                notes.append(f"{case}/{stage}: not offered{because(error)}")
                continue
            notes += [f"{case}/{stage}: {name} is not offered{because(it)}" for name, it in this.not_offered.items()]
            if extra := [name for name in recorded if stage in TAPPED and f"{case}/{name}" not in dump.entries]:
                names = ", ".join(name.removeprefix(f"{stage}/") for name in extra[:3])
                more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
                notes.append(f"{case}/{stage}: not compared, because the dump lacks it: {names}{more}")
            recorded = {name: value for name, value in recorded.items() if name not in extra}
            given |= {f"{case}/{name}": value for name, value in recorded.items()}
            theirs |= {f"{case}/{name}": value for name, value in recorded.items() if not is_left_to_enumeration(name)}
        if theirs:
            results += check(dump, theirs, cases=[case], stages=asked, source=source).results
    for stage, law in LAWS.items():
        if engine is None or (stages and stage not in stages):
            continue
        on_stage(law)
        try:
            found = called("acceptance", source, distances)(engine, by_block=stage == "accept_block")
            results += law_results(law, found)
        except NotImplementedError as error:
            notes.append(f"{law}: not offered{because(error)}")
    if not results:
        raise OracleError(f"{source}: offers nothing that was asked for: {'; '.join(notes) or 'no such stage'}")
    return Report(results, tuple(notes), given)


def because(error: NotImplementedError) -> str:
    return f" ({error})" if str(error) else ""


def is_left_to_enumeration(name: str) -> bool:
    """An engine may draw drafts in its own way; the enumeration checks that acceptance receives the matching distribution."""
    return name.startswith("law/") and name.endswith((".drawn", ".told"))


def has(dump: Dump, case: str, stage: str) -> bool:
    return any((entry.case, entry.stage) == (case, stage) for entry in dump.entries.values())


def complete(load: Load, source: str) -> Load:
    """`load`, with an error if the returned engine lacks a method."""

    def load_complete(*args: Any) -> Engine:
        engine = load(*args)
        check_functions(engine, source)
        return engine

    return load_complete


def check_functions(engine: Any, source: str) -> None:
    lacking = [name for name in FUNCTIONS if not callable(getattr(engine, name, None))]
    if lacking:
        raise OracleError(
            f"{source}: the returned engine ({type(engine).__name__}) lacks {', '.join(lacking)}; "
            "derive it from decoding.oracle.engine.Engine, which may leave out what your engine cannot offer"
        )


def law_results(law: str, distances: dict[str, float]) -> Iterable[Result]:
    """As results whose unit is a total variation of 1e-6."""
    for setting, distance in distances.items():
        units = distance / TOLERANCE
        status = Status.AGREES if units <= 1 else Status.DIFFERS
        note = f"the text's distribution is off by a total variation of {distance:.3g}, expected 0 (exact enumeration)"
        yield Result(f"{law}/{setting}", status, units, note)


def called(what: str, source: str, function: Callable) -> Callable:
    """`function`, whose exceptions become an OracleError that says where the engine failed."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (NotImplementedError, OracleError):
            raise
        except (Exception, SystemExit) as error:
            if os.environ.get("ORACLE_TRACEBACK"):
                traceback.print_exception(error)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise OracleError(
                f"{source}: {what} failed at {frame.filename}:{frame.lineno} ({type(error).__name__}: {error}); "
                "set ORACLE_TRACEBACK=1 to see the traceback"
            ) from error

    return call
