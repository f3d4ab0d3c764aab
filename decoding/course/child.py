"""What runs in a student's process: the solution's file on the inputs of a plan, each call's results into a file.

A script that needs NumPy and nothing of ours: `python -I child.py DIRECTORY`.  The directory has plan.json, arrays.npz and
solution.py; results go to out/CHECK.npz, and what happened to out/events.jsonl.  Expected values are never here.

The process limits itself before it reads the student's file: time, memory, size of files, number of processes, and where the
system allows it namespaces of its own, without a network and with no process that outlives it.  These are guards against
accidents, no wall against malice.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path

OURS = ("gemma4", "drafter", "decoding")
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
MAX_TEXT = 300  # characters of an exception's message


class TooLong(BaseException):
    """The time for one check is over."""


def isolate() -> bool:
    """Enter namespaces of one's own.  Returns whether the network is cut off.  The caller becomes a process that waits."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET) != 0:
            return False
    except (OSError, AttributeError):
        return False
    worker = os.fork()  # the first process of the new namespace: when it ends, the system ends all others there
    if worker:
        _, status = os.waitpid(worker, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return True


def limit(limits: dict[str, int]) -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    for name, value in limits.items():
        try:
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
        except (AttributeError, ValueError, OSError):  # not on this system, or less is allowed already
            continue


class NotOurs:
    """Refuses the project's own packages: the answer is in them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in OURS:
            raise ImportError(f"a solution must not import {name.split('.')[0]}: that is where the reference is")


class Events:
    def __init__(self, file: Path):
        self.file = open(file, "a", buffering=1, encoding="utf-8")

    def __call__(self, kind: str, **values: object) -> None:
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")


def what_happened(error: BaseException, solution: str) -> dict[str, object]:
    """An exception as data: its type, its message, and the last line of the student's file that ran."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == solution]
    if isinstance(error, SyntaxError) and error.filename == solution:
        where: tuple[int | None, str] = (error.lineno, (error.text or "").strip())
    else:
        where = (lines[-1].lineno, lines[-1].line or "") if lines else (None, "")
    try:
        text = str(error)
    except Exception:
        text = ""
    if type(error).__name__ == "RecursionError":
        text = text.split(" while ")[0]
    return {"error": type(error).__name__, "text": text[:MAX_TEXT], "line": where[0], "source": where[1][:MAX_TEXT]}


def load(solution: str) -> dict[str, object]:
    """The names that the solution's file defines."""
    source = Path(solution).read_bytes()
    namespace: dict[str, object] = {"__name__": "solution", "__file__": solution}
    module = type(sys)("solution")
    vars(module).update(namespace)
    sys.modules["solution"] = module  # dataclasses look there
    exec(compile(source, solution, "exec"), vars(module))
    return vars(module)


def main(directory: Path) -> None:
    plan = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    is_cut_off = isolate() if plan["isolated"] else False
    limit(plan["limits"])
    os.chdir(directory)
    events = Events(directory / "out" / "events.jsonl")
    events("begin", no_network=is_cut_off)

    import numpy as np

    np.seterr(all="ignore")
    sys.path.insert(0, str(Path(__file__).parent))  # for given.py alone
    from given import function_of

    sys.path.pop(0)
    sys.meta_path.insert(0, NotOurs())
    arrays = dict(np.load(directory / "arrays.npz", allow_pickle=False))
    solution = str(directory / plan["solution"])

    def ring(signum: int, frame: object) -> None:
        raise TooLong

    has_alarm = hasattr(signal, "setitimer")
    if has_alarm:
        signal.signal(signal.SIGALRM, ring)

    def within(seconds: float) -> None:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    try:
        within(plan["import_seconds"])
        names = load(solution)
        within(0)
    except BaseException as error:
        within(0)
        return events("not imported", **what_happened(error, solution))
    missing = [name for name in plan["functions"] if not callable(names.get(name))]
    if missing:
        events("missing", functions=missing)

    for check in plan["checks"]:
        results, seconds = {}, plan["check_seconds"]
        events("check", check=check["name"])
        within(seconds)
        failed: set[str] = set()
        for index, call in enumerate(check["calls"]):
            if call["function"] in missing or call["function"] in failed:
                continue
            try:
                arguments = []
                for argument in call["arguments"]:
                    kind, value = argument
                    arguments.append(
                        arrays[value].copy() if kind == "array" else function_of(*value) if kind == "given" else value
                    )
                before = [argument.copy() if isinstance(argument, np.ndarray) else None for argument in arguments]
                outputs = names[call["function"]](*arguments)  # pyright: ignore
                kept = as_arrays(outputs, len(call["outputs"]))
            except TooLong as error:
                events("too long", check=check["name"], index=index, **what_happened(error, solution))
                within(0)
                return
            except BaseException as error:
                events("error", check=check["name"], index=index, **what_happened(error, solution))
                if isinstance(error, NotImplementedError):
                    failed.add(call["function"])
                if isinstance(error, KeyboardInterrupt):
                    return
                continue
            for place, output in enumerate(kept):
                results[f"{index}.{place}"] = output
            for place, (old, new) in enumerate(zip(before, arguments, strict=True)):
                if old is not None and not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
                    events("changed", check=check["name"], index=index, argument=place)
        within(0)
        np.savez(directory / "out" / f"{check['name']}.npz", **results)
        events("done", check=check["name"])
    events("end")


def as_arrays(outputs: object, count: int) -> list:
    """The results of a call as arrays of numbers."""
    import numpy as np

    if count == 1:
        outputs = outputs[0] if isinstance(outputs, tuple) and len(outputs) == 1 else outputs
        outputs = (outputs,)
    if not isinstance(outputs, (tuple, list)) or len(outputs) != count:
        got = f"{len(outputs)} values" if isinstance(outputs, (tuple, list)) else type(outputs).__name__
        raise TypeError(f"expected {count} results, got {got}")
    kept = []
    for output in outputs:
        if output is None:
            raise TypeError("a result is None: is a `return` missing?")
        array = np.asarray(output)
        if str(array.dtype) in ("bfloat16", "float16"):
            array = array.astype(np.float32)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"a result has the type {array.dtype}, which are not numbers")
        kept.append(array)
    return kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
