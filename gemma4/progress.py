"""What takes long, shown on a terminal: a bar or a spinner on standard error, which is gone when the work is done.

Nothing is shown unless a program asks for it with `show`, as the command line does; and never in a pipe or a file.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

PATIENCE = 1.0  # seconds; what is done sooner shows nothing
Advance = Callable[..., None]  # (amount, arrays=None, description=None)
_is_wanted = False


def show(wanted: bool = True) -> None:
    """Show progress from here on, where standard error is a terminal; or nothing."""
    global _is_wanted
    _is_wanted = wanted


def is_shown() -> bool:
    return _is_wanted and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def progress(what: str, total: int | None = None, unit: str = "", done: int = 0) -> Iterator[Advance]:
    """Show `what` from PATIENCE seconds on, until the block ends.  The block calls what it gets, `advance(amount)`.

    total: how much there is to do, with `done` of it done already; None where that is not known.
    unit:  of both; "bytes" are shown as MB or GB.
    advance(amount, arrays): waits for arrays that are still computed, so that only what is done is counted.
    advance(0, description=text): another text in place of `what`.
    """
    if not is_shown():
        yield _ignore
        return
    bar = _bar(total, unit)
    task = bar.add_task(what, total=total, completed=done)

    def advance(amount: int, arrays: Any = None, description: str | None = None) -> None:
        if arrays is not None:
            jax.block_until_ready(arrays)
        bar.update(task, advance=amount, description=description)

    timer = threading.Timer(PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield advance
    finally:
        timer.cancel()
        timer.join()  # it may be at the start right now
        bar.stop()


def _ignore(amount: int, arrays: Any = None, description: str | None = None) -> None:
    pass


def _bar(total: int | None, unit: str) -> Any:
    from rich import progress as rich  # here, because importing it takes longer than many a command
    from rich.console import Console

    text, elapsed = rich.TextColumn("{task.description}", markup=False), rich.TimeElapsedColumn()
    if total is None:
        columns = [rich.SpinnerColumn(), text, elapsed]
    else:
        count = [rich.DownloadColumn()] if unit == "bytes" else [rich.MofNCompleteColumn(), rich.TextColumn(unit)]
        columns = [text, rich.BarColumn(), *count, elapsed, rich.TimeRemainingColumn()]
    return rich.Progress(*columns, console=Console(stderr=True), transient=True)
