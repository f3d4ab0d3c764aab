"""Run a student's file in a process of its own, with limits, and bring back the arrays that it computed.

A hang, a crash, `sys.exit`, a flood of output or of processes is a result, never an end of grading.  The limits are in
`child.py`.  They protect from accidents, not from malice: for that, run the grader in a container (the line is in
tutorials/assignments/README.md).
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decoding.course.given import Given

CHILD = Path(__file__).with_name("child.py")
MIB = 2**20
IMPORT_SECONDS, CHECK_SECONDS, ALL_SECONDS = 20.0, 20.0, 90.0
MAX_OUTPUT = 4096  # characters of what the student printed
MAX_RESULT = 64 * MIB
EVENT_BYTES = 256 * 1024
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment
ORDINARY_THREADS = 256  # of this process and the libraries that it uses


class PlannedCall(NamedTuple):
    """As `assignment.Call`, in the order of the page's parameters."""

    function: str
    arguments: Sequence[Any]
    outputs: Sequence[str]


@dataclasses.dataclass
class Outcome:
    """What came back.  `ended`: "ok", or in words what ended it."""

    ended: str = "ok"
    outputs: dict[tuple[str, int], list[np.ndarray]] = dataclasses.field(default_factory=dict)
    errors: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    changed: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)  # which argument a call changed
    unwritten: set[str] = dataclasses.field(default_factory=set)  # functions
    printed: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def run(
    source: bytes,
    checks: Mapping[str, Sequence[PlannedCall]],
    *,
    file_name: str = "solution.py",
    check_seconds: float = CHECK_SECONDS,
    all_seconds: float = ALL_SECONDS,
    memory: int = 4096 * MIB,
    isolated: bool = True,
) -> Outcome:
    """Run the solution on all calls of all checks."""
    with tempfile.TemporaryDirectory(prefix="gemma4-mtp-course-", ignore_cleanup_errors=True) as name:
        directory = Path(name).resolve()
        (directory / "out").mkdir()
        (directory / file_name).write_bytes(source)
        functions = _write_inputs(directory, checks, file_name, check_seconds, all_seconds, memory, isolated)
        timed_out, code = _run_child(directory, all_seconds)
        outcome = Outcome()
        _read_events(directory, outcome, functions, timed_out, code, all_seconds)
        _read_outputs(directory, checks, outcome)
        with contextlib.suppress(OSError):
            outcome.printed = _head(directory / "printed.txt", MAX_OUTPUT)
        return outcome


def _write_inputs(
    directory: Path,
    checks: Mapping[str, Sequence[PlannedCall]],
    file_name: str,
    check_seconds: float,
    all_seconds: float,
    memory: int,
    isolated: bool,
) -> list[str]:
    arrays: dict[str, np.ndarray] = {}

    def planned(value: Any) -> tuple[str, Any]:
        if isinstance(value, np.ndarray):
            name = f"a{len(arrays)}"
            arrays[name] = value
            return "array", name
        return ("given", list(value)) if isinstance(value, Given) else ("value", value)

    plan_checks = [
        {
            "name": name,
            "calls": [
                {"function": c.function, "arguments": [planned(a) for a in c.arguments], "outputs": list(c.outputs)}
                for c in calls
            ],
        }
        for name, calls in checks.items()
    ]
    functions = list(dict.fromkeys(call.function for calls in checks.values() for call in calls))
    plan = {
        "solution": file_name,
        "functions": functions,
        "checks": plan_checks,
        "import_seconds": min(IMPORT_SECONDS, all_seconds),
        "check_seconds": check_seconds,
        "isolated": isolated and sys.platform == "linux",
        "limits": {
            "RLIMIT_CPU": int(all_seconds) + 5,
            "RLIMIT_AS": memory,
            "RLIMIT_FSIZE": MAX_RESULT,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": _threads_now() + ORDINARY_THREADS,
            "RLIMIT_NOFILE": 256,
        },
    }
    (directory / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    np.savez(directory / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return functions


def _threads_now() -> int:
    """How many threads there are, of every user: a limit on a user's processes counts all that the user has."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
    return 4096


def _run_child(directory: Path, seconds: float) -> tuple[bool, int | None]:
    """Whether it was ended for its time, and its exit code."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # code that runs once is compiled once
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }
    with open(directory / "printed.txt", "wb") as printed:
        child = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD), str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
    try:
        return False, child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True, None
    finally:
        with contextlib.suppress(OSError):  # all that it started, too
            os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()
        child.wait()


def _head(file: Path, size: int) -> str:
    if file.is_symlink() or not file.is_file():
        return ""
    with open(file, "rb") as stream:
        return stream.read(size).decode("utf-8", "replace")


def _read_events(
    directory: Path, outcome: Outcome, functions: list[str], timed_out: bool, code: int | None, seconds: float
) -> None:
    events: list[dict[str, Any]] = []
    for line in _head(directory / "out" / "events.jsonl", EVENT_BYTES).splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    running = None
    for event in events:
        kind, place = event.get("kind"), (str(event.get("check")), int(event.get("index") or 0))
        if kind == "begin" and not event.get("no_network"):
            outcome.notes.append("the network was not cut off")
        elif kind == "not imported":
            outcome.ended = f"the file cannot be imported: {_told(event)}"
            if event.get("error") == "TooLong":
                outcome.ended = f"importing the file did not end within {IMPORT_SECONDS:g} s{_at(event)}"
        elif kind == "missing":
            for function in event.get("functions", ()):
                outcome.unwritten.add(str(function))
        elif kind == "check":
            running = event.get("check")
        elif kind == "too long":
            outcome.ended = f"it did not come back in time{_at(event)}"
        elif kind == "error":
            if event.get("error") == "NotImplementedError":
                outcome.unwritten.update(_function_at(event, functions))
            outcome.errors[place] = _told(event)
        elif kind == "changed":
            outcome.changed[place] = int(event.get("argument") or 0)
    if outcome.ended == "ok" and not any(event.get("kind") == "end" for event in events):
        where = f" in check {running}" if running else ""
        if timed_out:
            outcome.ended = f"it did not come back within {seconds:g} s{where}"
        elif code in (-signal.SIGKILL, -signal.SIGXCPU, 256 - signal.SIGKILL, 256 - signal.SIGXCPU):
            outcome.ended = f"the system ended it{where}: too much memory or time"
        else:
            outcome.ended = f"the process ended by itself{where}, with exit code {code}"


def _function_at(event: dict[str, Any], functions: list[str]) -> list[str]:
    """The function that says that it is not written: `assignment 09: decide`."""
    return [function for function in functions if str(event.get("text", "")).endswith(f": {function}")]


def _told(event: dict[str, Any]) -> str:
    """`ValueError: ... (line 12: ...)`, or a sentence for the commonest."""
    error, text = str(event.get("error")), str(event.get("text", ""))
    if error == "NotImplementedError":
        return "not written yet"
    if error == "SystemExit":
        return f"it called exit{_at(event)}"
    if error == "MemoryError":
        return f"it asked for more memory than there is{_at(event)}"
    return f"{error}: {' '.join(text.split())}{_at(event)}"


def _at(event: dict[str, Any]) -> str:
    line = event.get("line")
    return f" (line {line}: {event.get('source', '')})" if isinstance(line, int) else ""


def _read_outputs(directory: Path, checks: Mapping[str, Sequence[PlannedCall]], outcome: Outcome) -> None:
    for name, calls in checks.items():
        file = directory / "out" / f"{name}.npz"
        if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_RESULT:
            continue
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
        except Exception as error:  # a file that the student's code wrote, or cut short
            outcome.notes.append(f"the results of {name} cannot be read ({type(error).__name__})")
            continue
        for index, call in enumerate(calls):
            found = [arrays.get(f"{index}.{place}") for place in range(len(call.outputs))]
            if all(array is not None for array in found):
                outcome.outputs[name, index] = found  # pyright: ignore[reportArgumentType]
