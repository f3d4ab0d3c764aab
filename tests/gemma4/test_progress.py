"""Progress: on a terminal, after a while, gone at the end; nothing in a pipe, nothing unless it is asked for."""

import io
import sys
import time
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import pytest

from gemma4 import progress as module
from gemma4.progress import progress, show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Iterator[Callable[[], Terminal]]:
    """Call it: progress is shown on what it returns, without delay.  (pytest sets its own sys.stderr before each test.)"""

    def begin() -> Terminal:
        monkeypatch.setattr(sys, "stderr", err := Terminal())
        return err

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    show()
    yield begin
    show(False)
    assert not module._running


def work(**settings) -> None:
    with progress("reading the file", 4, "pages", **settings) as advance:
        for _ in range(4):
            advance(1, jnp.zeros(3))
            time.sleep(0.1)


def test_what_a_terminal_shows(terminal):
    err = terminal()
    work()
    out = err.getvalue()
    assert "reading the file" in out and "of 4 pages" in out
    assert out.endswith("\x1b[2K") or "\x1b[2K" in out[-40:], "the line is erased at the end"


def test_bytes_and_another_description(terminal):
    err = terminal()
    with progress("reading", 3_000_000, "bytes", done=1_000_000) as advance:
        advance(1_000_000)
        advance(0, description="still reading")
        time.sleep(0.5)
    assert "still reading" in err.getvalue() and "2 of 3 MB" in err.getvalue()


def test_one_within_another_is_a_second_line(terminal):
    err = terminal()
    with progress("compiling"):
        time.sleep(0.3)
        work()
        time.sleep(0.1)
    assert "compiling" in err.getvalue() and "of 4 pages" in err.getvalue()


def test_what_is_quick_shows_nothing(terminal, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    err = terminal()
    work()
    assert err.getvalue() == ""


def test_an_error_ends_it(terminal):
    err = terminal()
    with pytest.raises(ZeroDivisionError), progress("dividing"):
        time.sleep(0.3)
        _ = 1 / 0
    assert "dividing" in err.getvalue()


@pytest.mark.parametrize("why", ["pipe", "quiet", "dumb"])
def test_nothing_is_shown(why, terminal, monkeypatch):
    err = terminal()
    if why == "pipe":
        monkeypatch.setattr(sys, "stderr", err := io.StringIO())
        monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich take a pipe for a terminal
    elif why == "quiet":
        show(False)
    else:
        monkeypatch.setenv("TERM", "dumb")
    work()
    assert err.getvalue() == ""
