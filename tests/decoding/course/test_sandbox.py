"""Whatever a student's code does, something comes back, and nothing stays."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from decoding.course.given import Given
from decoding.course.sandbox import PlannedCall, run

CALL = PlannedCall("f", [np.float32([1, 2])], ["result"])
CHECKS = {"first": [CALL], "second": [CALL]}


def outcome_of(body: str, *, before: str = "", seconds: float = 2.0, **limits):
    source = f"import os, sys, time\nimport numpy as np\n{before}\ndef f(x):\n    {body}\n"
    return run(source.encode(), CHECKS, check_seconds=seconds, all_seconds=max(8.0, 2 * seconds), **limits)


def test_results_come_back():
    outcome = outcome_of("print('hello'); return 2 * x")
    assert outcome.ended == "ok" and "hello" in outcome.printed and not outcome.errors
    np.testing.assert_array_equal(outcome.outputs["first", 0][0], [2, 4])
    assert ("second", 0) in outcome.outputs


ENDINGS = {
    "an endless loop": ("while True: pass", "did not come back in time (line 5: while True: pass)"),
    "a sleep": ("time.sleep(60)", "did not come back in time (line 5: time.sleep(60))"),
    "an exit of the process": ("os._exit(0)", "ended by itself in check first, with exit code 0"),
    "results and working directory deleted": (
        "import shutil; shutil.rmtree(os.getcwd()); return x", "ended by itself"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_what_ends_a_run_is_told(name):
    body, ended = ENDINGS[name]
    began = time.monotonic()
    outcome = outcome_of(body, seconds=1.0)
    assert ended in outcome.ended and not outcome.outputs
    assert time.monotonic() - began < 20


ERRORS = {
    "an exception": (
        "return x[7]",
        "IndexError: index 7 is out of bounds for axis 0 with size 2 (line 5: return x[7])",
    ),
    "sys.exit": ("sys.exit(0)", "it called exit (line 5: sys.exit(0))"),
    "too much memory": ("return np.ones(2**40)", "(line 5: return np.ones(2**40))"),
    "no end of recursion": ("return f(x)", "RecursionError"),
    "nothing returned": ("pass", "a result is None: is a `return` missing?"),
    "text for a number": ("return 'two'", "which are not numbers"),
    "the reference": ("import decoding; return x", "a solution must not import decoding"),
    "a flood of output": ("print('x' * 2**27); sys.stdout.flush(); return x", "File too large"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_told_with_its_line(name):
    body, told = ERRORS[name]
    outcome = outcome_of(body, seconds=30.0)
    assert outcome.ended == "ok" and told in outcome.errors["first", 0], outcome
    assert not outcome.outputs and len(outcome.printed) <= 4096


def test_what_fails_at_import_is_told():
    assert "cannot be imported: ZeroDivisionError" in outcome_of("return x", before="1 / 0").ended
    assert "SyntaxError" in outcome_of("return x", before="def g(:").ended
    assert "it called exit" in outcome_of("return x", before="sys.exit(3)").ended
    assert run(b"g = 1", CHECKS).unwritten == {"f"}


def test_a_function_that_is_not_written_is_told():
    outcome = outcome_of("raise NotImplementedError('assignment 09: f')")
    assert outcome.unwritten == {"f"} and outcome.ended == "ok"


def test_a_changed_argument_is_told():
    outcome = outcome_of("x += 1; return x")
    assert outcome.changed == {("first", 0): 0, ("second", 0): 0}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
def test_no_process_outlives_a_run(tmp_path):
    """A child that leaves its session dies with the namespace, where there is one; within the session it always does."""
    mark = "sleeper-" + tmp_path.name
    leave = "os.setsid();" if not outcome_of("return x").notes else ""
    body = f"""
    if os.fork() == 0:
        {leave} os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "{mark}"])
    time.sleep(0.3)
    return x"""
    assert outcome_of(body.strip()).ended == "ok"
    time.sleep(0.5)

    def running():
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and mark in (process / "cmdline").read_text():
                    yield process.name
            except OSError:
                continue

    assert not list(running())


def test_the_network_is_cut_off_or_the_report_says_so():
    outcome = outcome_of("import socket; return len(socket.if_nameindex())")
    names = outcome_of("import socket; socket.create_connection(('127.0.0.1', 9), 1); return x")
    assert "the network was not cut off" in outcome.notes or outcome.outputs["first", 0][0] == 1
    assert not names.outputs


def test_the_environment_has_no_secrets(monkeypatch):
    monkeypatch.setenv("COURSE_SECRET", "hush")
    outcome = outcome_of("return [len(os.environ.get('COURSE_SECRET', '')), os.environ['HOME'] == os.getcwd()]")
    np.testing.assert_array_equal(outcome.outputs["first", 0][0], [0, 1])
    assert "hush" in os.environ["COURSE_SECRET"]


def test_given_functions_are_functions_there():
    call = PlannedCall("f", [Given("embed", 3), np.int32([0, 1])], ["result"])
    outcome = run(b"def f(embed, token):\n    return embed(token)\n", {"only": [call]})
    assert outcome.outputs["only", 0][0].shape == (2, 6)


def test_random_bytes_for_events_and_results_do_not_stop_the_grader():
    body = (
        "open('out/events.jsonl', 'ab').write(bytes(range(256))); open('out/second.npz', 'wb').write(b'no'); return x"
    )
    outcome = outcome_of(body)
    assert ("first", 0) in outcome.outputs
