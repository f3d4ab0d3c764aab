"""What guards the imports of the command, which take most of its first second.

PyPI has other packages called `drafter` and `decoding`.  The first on the path, or the last installed, hides the others.
Ours have the marker below in their `__init__.py`.  A package of one of these names without it is not ours.

It imports nothing of ours, so that it can be the first import of all.
"""

import importlib.util
import os
import signal
import sys
from pathlib import PurePath

MARKER = '__distribution__ = "gemma4-mtp"'
COMMAND, MODULES = "gemma4-mtp", ("gemma4", "decoding")  # how it is started: by its name, or as `python -m` of a module
MISTAKE, INTERRUPTED = 2, 130  # exit codes
LONGEST_MESSAGE = 1000


def check_not_shadowed(*names: str) -> None:
    """Errors: ImportError that names the package that hides ours, and what to do.  Runs none of that package's code.

    While the command starts, one line and exit code 2 instead.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue  # not installed at all: the import itself says so
        get_source = getattr(spec.loader, "get_source", None)
        source = get_source(name) if get_source else None
        is_bare_folder = spec.origin is None
        if is_bare_folder or (source is not None and MARKER not in source):
            location = spec.origin or ", ".join(spec.submodule_search_locations or [])
            error = ImportError(
                f"the package {name!r} at {location} is not gemma4-mtp's, but hides it: if the folder is yours, rename it or "
                "start Python in another one; otherwise install gemma4-mtp into a fresh virtual environment, or remove the "
                f"other (pip uninstall {name}) and install gemma4-mtp again",
                name=name,
            )
            if is_command():
                raise SystemExit(mistake(error)) from error
            raise error


def begin_command() -> None:
    """If this process starts the command, Ctrl-C ends it quietly from now on, and so does one line if JAX refuses a setting.

    To be called before JAX is imported.  In any other process it does nothing.
    """
    if not is_command():
        return
    end_quietly_when_interrupted()
    try:
        import jax  # noqa: F401
    except ValueError as error:  # about the value of an environment variable
        reason = f"JAX refuses a setting in the environment ({error}); correct that variable, or unset it"
        raise SystemExit(mistake(reason)) from error
    except MemoryError as error:
        raise SystemExit(
            mistake("out of memory while JAX is imported; end other programs, or raise the limit")
        ) from error


def is_command() -> bool:
    """Whether this process runs the command.  Of `python -m`, only while it imports the package: later it has another name."""
    started = sys.argv[0] if sys.argv else ""
    if started == "-m":
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") in MODULES
    return PurePath(started).stem == COMMAND


def end_quietly_when_interrupted() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        # Not by an exception, which could be raised inside one of JAX's callbacks and be lost there.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def mistake(error: Exception | str) -> int:
    """One line on standard error; the exit code.  Errors: OSError if standard error cannot be written."""
    if sys.stderr is not None:  # closed from the start, as by `2>&-`
        print(f"{COMMAND}: error:", one_line(str(error)), file=sys.stderr, flush=True)
    return MISTAKE


def one_line(text: str) -> str:
    """`text` as a terminal can show it: no control characters, which it would obey, and the middle of a long one left out."""
    text = " ".join(text.split())
    if len(text) > LONGEST_MESSAGE:  # values are at the beginning and in the middle, advice is at the end
        text = f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
