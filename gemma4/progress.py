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
_running: list[Any] = []  # a bar for each block that is entered; all are the same one


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
    unit:  of both; "bytes" are shown as MB.
    advance(amount, arrays): waits for arrays that are still computed, so that only what is done is counted.
    advance(0, description=text): another text in place of `what`.
    Within another one it is a second line.
    """
    if not is_shown():
        yield _ignore
        return
    bar = _running[-1] if _running else _new_bar()
    task = bar.add_task(what, total=total, completed=done, visible=False, amount="")

    def advance(amount: int, arrays: Any = None, description: str | None = None) -> None:
        nonlocal done
        if arrays is not None:
            jax.block_until_ready(arrays)
        done += amount
        bar.update(task, completed=done, description=description, amount=_amount(done, total, unit))

    def appear() -> None:
        bar.update(task, visible=True)
        bar.start()

    timer = threading.Timer(PATIENCE, appear)
    timer.daemon = True
    timer.start()
    _running.append(bar)
    try:
        yield advance
    finally:
        timer.cancel()
        timer.join()  # it may be at the start right now
        _running.pop()
        bar.remove_task(task)
        if not _running:
            bar.stop()


def _ignore(amount: int, arrays: Any = None, description: str | None = None) -> None:
    pass


def _amount(done: int, total: int | None, unit: str) -> str:
    if total is None:
        return ""
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if unit == "bytes" else f"{done:,} of {total:,} {unit}"


def _new_bar() -> Any:
    from rich import progress as rich  # here, because importing it takes longer than many a command
    from rich.console import Console

    columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(bar_width=30)]
    columns += [rich.TextColumn("{task.fields[amount]}"), rich.TimeElapsedColumn()]
    return rich.Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
