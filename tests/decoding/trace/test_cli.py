"""The command: what it writes, and what it refuses."""

import functools
import json
import os
import subprocess
import sys

import pytest

import decoding
from decoding.cli import generate, main
from decoding.trace import cli
from decoding.trace.check import check_trace
from decoding.trace.record import RoundsDiffer
from tests.decoding.trace.conftest import EXAMPLE, example

PROMPT = "In the beginning"
load_pair = functools.cache(decoding.load_pair)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(main, "keep_compiled_code", lambda: None)
    monkeypatch.setattr(generate, "load_pair", load_pair)


@pytest.fixture
def run(pair_dir, capsys, tmp_path, monkeypatch):
    """trace on the tiny pair: (exit code, standard output, standard error); files are in the current directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        pair = [f"--{name}={pair_dir / name}" for name in ("target", "drafter")]
        sizes = ["--max-new-tokens=6", "--draft-length=2", "--no-times"]
        code = main.main(["trace", *(() if "--from" in " ".join(arguments) else (*pair, *sizes)), *arguments])
        return code, *capsys.readouterr()

    return run


def test_a_page_and_its_numbers(run, tmp_path):
    code, out, err = run(PROMPT, "--out=page.html", "--json=numbers.json", "--seed=3", "--acceptance=block")
    assert (code, err) == (0, "")
    trace = json.loads((tmp_path / "numbers.json").read_text())
    check_trace(trace)
    assert out.startswith(f"page.html: {len(trace['rounds'])} rounds, 6 tokens, ")
    assert trace["settings"]["acceptance"] == "block" and trace["settings"]["sampling"]["temperature"] == 1
    assert (trace["settings"]["draft_length"], trace["settings"]["seed"], trace["times"]) == (2, 3, None)
    assert trace["made_by"]["target"] == "target" and "/" not in trace["made_by"]["command"]
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and '"format":"trace/1"' in page
    assert sorted(os.listdir(tmp_path)) == ["numbers.json", "page.html"]


def test_a_page_of_a_trace(run, tmp_path):
    code, out, err = run("--from", str(EXAMPLE), "--out=page.html")
    assert (code, err) == (0, "") and "23 rounds, 64 tokens" in out
    data = (tmp_path / "page.html").read_text().split('id="trace-data">')[1].split("</script>")[0]
    assert json.loads(data) == example()


def test_times(monkeypatch, run, tmp_path, pair_dir):
    monkeypatch.setattr(cli, "LAPS", 1)
    monkeypatch.setattr("decoding.bench.stages.LAP_SECONDS", 0.0)
    pair = [f"--{name}={pair_dir / name}" for name in ("target", "drafter")]
    arguments = ["trace", PROMPT, *pair, "--max-new-tokens=3", "--draft-length=2", "--out=page.html", "--json=n.json"]
    assert main.main(arguments) == 0
    trace = json.loads((tmp_path / "n.json").read_text())
    check_trace(trace)
    times = trace["times"]
    assert all(times[name] > 0 for name in ("draft", "verify", "accept", "rollback", "step"))
    assert times["rollback"] < times["verify"] and "median of 1 laps" in times["how"]


REFUSED = {
    "no file to write": ([PROMPT], "the following arguments are required: --out"),
    "no prompt": (["--out=x"], "as TEXT, --prompt-file, --prompt-ids; got none of them"),
    "no such directory": ([PROMPT, "--out=no/x.html"], "--out no/x.html: there is no directory no; make it first"),
    "a directory": ([PROMPT, "--out=."], "--out .: expected the name of a file, got a directory"),
    "a device": ([PROMPT, "--out=/dev/null"], "--out /dev/null: expected the name of a file, got a device or a pipe"),
    "one file twice": ([PROMPT, "--out=x", "--json=./x"], "--out and --json: expected two files"),
    "no name": ([PROMPT, "--out=\0"], "--out"),
    "nothing drafted": (
        [PROMPT, "--out=x", "--draft-length=0"],
        "--draft-length: expected 1 to 32 tokens a round, got 0",
    ),
    "a temperature": ([PROMPT, "--out=x", "--temperature=-1"], "temperature: expected a number from 0 (greedy) up"),
    "a trace and a text": ([PROMPT, "--out=x", "--from", "y"], "--from shows a recorded text: leave out TEXT"),
    "a trace and a copy": (["--json=z", "--out=x", "--from", "y"], "--from shows a recorded text: leave out --json"),
    "no such trace": (["--out=x", "--from", "y"], "y: no such file; name a trace, as `gemma4-mtp trace --json FILE`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes(case, run, tmp_path):
    arguments, message = REFUSED[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err.startswith("gemma4-mtp: error: ") and err.count("\n") == 1
    assert message in err and os.listdir(tmp_path) == []


WRONG = {
    "version": (lambda trace: trace.update(format="trace/2"), "format: this version reads 'trace/1', got 'trace/2'"),
    "missing": (lambda trace: trace["rounds"][0].pop("next"), "rounds[0]: 'next' is a required property"),
    "type": (lambda trace: trace.update(rounds={}), "rounds: {} is not of type 'array'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_trace(case, run, trace, tmp_path):
    change, message = WRONG[case]
    change(trace)
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    code, out, err = run("--from=trace.json", "--out=x.html")
    assert (code, out, err.count("\n")) == (2, "", 1) and f"trace.json: {message}" in err
    assert os.listdir(tmp_path) == ["trace.json"]


@pytest.mark.parametrize("content", [b"<html>", b"[" * 100_000, b"\xff\xfe", b"", b"{}", b"null"])
def test_no_trace_at_all(content, run, tmp_path):
    (tmp_path / "trace.json").write_bytes(content)
    code, out, err = run("--from=trace.json", "--out=x.html")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("gemma4-mtp: error: trace.json: ")


def test_a_round_that_differs_is_one_line(run, monkeypatch, tmp_path):
    def record(*args, **settings):
        raise RoundsDiffer("round 4: stage by stage the drafts are …")

    monkeypatch.setattr(cli, "record", record)
    code, out, err = run(PROMPT, "--out=x.html")
    assert (
        (code, out, os.listdir(tmp_path)) == (2, "", []) and "round 4: stage by stage" in err and err.count("\n") == 1
    )


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    cli.write(str(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_a_directory_that_may_not_be_written(run, tmp_path, monkeypatch):
    def refuse(*args, **settings):
        raise PermissionError(13, "Permission denied", "page.html")

    monkeypatch.setattr(cli.tempfile, "mkstemp", refuse)
    code, out, err = run("--from", str(EXAMPLE), "--out=page.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "page.html: cannot be written (Permission denied); choose another directory" in err


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("as before")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        cli.write(str(file), "new")
    assert os.listdir(tmp_path) == ["page.html"] and file.read_text() == "as before"


def test_generating_imports_nothing_of_it():
    code = "import sys, decoding.cli.main as m; m.make_parser('generate'); m.make_parser(None); import decoding.cli.generate\n"
    code += "sys.exit(any(name.startswith(('decoding.trace', 'jsonschema', 'playwright')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
