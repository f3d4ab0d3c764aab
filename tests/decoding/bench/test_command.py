"""`gemma4-mtp bench`: what it refuses, and what it prints."""

import argparse
import contextlib
import functools
import io
import itertools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from decoding.bench import cli as bench_cli
from decoding.bench import machine, measure, plot, stages
from decoding.bench import subject as subjects
from decoding.bench.extra import contexts, peer
from decoding.bench.loops import Lap, Loop
from decoding.bench.measure import Plan
from decoding.bench.report import lines
from decoding.bench.work import Work, against_machine
from decoding.cli.main import main
from decoding.fast import KERNELS
from decoding.options import Options
from decoding.sampling import Sampling
from gemma4.config import FULL, SLIDING
from tests.models import small_subject

# -- what it refuses ---------------------------------------------------------------------------------------------------

PAIR = "the tiny pair's directories"  # stands for its two options
REFUSED = {
    "unknown preset": (["--preset=E3B"], "--preset E3B: expected one of E2B, E4B, 12B, 26B-A4B, 31B, 50M"),
    "scale 2": (["--preset=E2B", "--scale=2"], "--scale: expected a number over 0 and up to 1, got 2"),
    "scale 0": (["--preset=E2B", "--scale=0"], "--scale: expected a number over 0 and up to 1, got 0"),
    "scale 1e-9": (["--preset=E2B", "--scale=1e-9"], "--scale: expected at least 0.001, got 1e-09; smaller ones would"),
    "scale nan": (["--preset=E2B", "--scale=nan"], "--scale: expected a number over 0 and up to 1, got nan"),
    "scale without preset": (
        ["--scale=0.5"],
        "--scale: scales the layout of a --preset, not a pair with its own weights",
    ),
    "preset with target": (["--preset=E2B", "--target=here"], "--preset: has random weights; give it, or --target"),
    "draft length 0": (["--draft-lengths=0"], "--draft-lengths: expected numbers of at least 1, got '0'"),
    "draft length x": (["--draft-lengths=x"], "--draft-lengths: expected numbers such as 1-8 or 1,2,4, got 'x'"),
    "no draft length": (["--draft-lengths="], "--draft-lengths: expected numbers such as 1-8 or 1,2,4, got ''"),
    "draft lengths falling": (["--draft-lengths=5-2"], "--draft-lengths: expected numbers of at least 1, got '5-2'"),
    "far too many": (
        ["--draft-lengths=1-99999"],
        "--draft-lengths: expected a range of at most 1000 numbers, got 1-99999",
    ),
    "draft length 40": (["--draft-lengths=2,40"], "--draft-lengths: expected 1 to 32 tokens a round, got 40"),
    "batch 0": (["--batch=0,8"], "--batch: expected numbers of at least 1, got '0,8'"),
    "batch enormous": (["--batch=99999999"], "--batch: expected at most 10000, got 99999999"),
    "batches without a common multiple": (
        ["--batch=1-1000"],
        "--batch: expected sizes with a common multiple of at most 10000, the number of prompts, got '1-1000'; give fewer",
    ),
    "prompts enormous": (["--prompts=999999999999"], "--prompts: expected at most 10000, got 999999999999"),
    "runs enormous": (["--runs=99999999"], "--runs: expected at most 10000, got 99999999"),
    "threads enormous": (["--threads=999999", "--batch=2"], "--threads: expected at most 10000, got 999999"),
    "runs 0": (["--runs=0"], "--runs: expected at least 1, got 0"),
    "runs x": (["--runs=x"], "argument --runs: invalid int value: 'x'; `gemma4-mtp bench --help` shows"),
    "prompts 0": (["--prompts=0"], "--prompts: expected at least 1, got 0"),
    "new tokens 1": (["--new-tokens=1"], "--new-tokens: expected at least 3, got 1"),
    "accept rate 2": (["--accept-rate=2"], "--accept-rate: expected a probability in 0..1, got 2"),
    "accept rate nan": (["--accept-rate=nan"], "--accept-rate: expected a probability in 0..1, got nan"),
    "no threads": (["--threads=0", "--batch=8"], "--threads: expected at least 1, got 0"),
    "threads without a batch": (
        ["--threads=2"],
        "--threads: splits the rows of a batch, and a batch of one cannot be split; give a larger one, such as --batch 8",
    ),
    "temperature -1": (["--temperature=-1"], "temperature: expected a number from 0 (greedy) up, got -1"),
    "block, greedy": (
        ["--acceptance=block"],
        "--acceptance block: is for sampled drafts; give a --temperature of 1e-05 or more",
    ),
    "block, simulated": (
        ["--acceptance=block", "--temperature=1", "--accept-rate=0.5"],
        "--acceptance block: is for sampled drafts; give a --temperature of 1e-05 or more, and no --accept-rate",
    ),
    "plot suffix": (["--plot=x.jpeg"], "--plot x.jpeg: expected a file name that ends in .png, .svg, .pdf"),
    "plot nameless": (["--plot="], "--plot .: expected a file name that ends in .png, .svg, .pdf"),
    "plot folder": (["--plot=/nowhere/x.png"], "--plot /nowhere/x.png: no such directory /nowhere; make it first"),
    "plot against": (
        ["--plot=x.png", "--against=transformers"],
        "--plot does nothing with --against: leave one of them out",
    ),
    "against sampled": (
        ["--against=transformers", "--temperature=1"],
        "--temperature does nothing with --against: leave one of them out",
    ),
    "contexts batched": (["--contexts=16", "--batch=8"], "--batch does nothing with --contexts: leave one of them out"),
    "heads in bfloat16": (["--heads", "--dtype=bfloat16"], "--dtype does nothing with --heads: leave one of them out"),
    "experts shrunk": (
        ["--experts", "--preset=26B-A4B", "--scale=0.5"],
        "--preset does nothing with --experts: leave one of them out",
    ),
    "against another": (["--against=vllm"], "argument --against: invalid choice: 'vllm' (choose from "),
    "contexts with against": (
        ["--contexts=16", "--against=transformers"],
        "--against, --contexts, --heads, --experts are measurements of their own: give one of them",
    ),
    "contexts empty": (["--contexts="], "--contexts: expected numbers such as 1-8 or 1,2,4, got ''"),
    "contexts tiny": (["--contexts=8"], "--contexts: expected numbers of at least 16, got '8'"),
    "contexts too long": (
        [PAIR, "--contexts=16,129"],
        "--contexts: expected at most 128 tokens, this model's context, got 129",
    ),
    "prompt too long": (
        [PAIR, "--prompt-tokens=100", "--new-tokens=29"],
        "--prompt-tokens and --new-tokens: expected at most 128 tokens, this model's context, got 129",
    ),
    "prefill too long": (
        [PAIR, "--prompt-tokens=8", "--new-tokens=9", "--prefill-tokens=128"],
        "--prefill-tokens: expected at most 128 tokens, this model's context, got 129",
    ),
    "no such target": (["--target=/nowhere", "--drafter=/nowhere"], "/nowhere: no such directory"),
    "target alone": (["--target=/nowhere"], "only a target directory was given"),
}


def assert_refused(arguments: list[str], message: str, capsys) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("gemma4-mtp: error: ") and message in err


@pytest.fixture
def nothing_runs(monkeypatch):
    """A mistake that is not refused fails at once, not after minutes."""

    def missed(*args):
        raise AssertionError("not refused")

    jobs = [(bench_cli, name) for name in ("measure", "measure_contexts", "compare")]
    for module, name in (*jobs, (subjects, "random_weights")):
        monkeypatch.setattr(module, name, missed)


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments(case, pair_dir, capsys, nothing_runs):
    arguments, message = REFUSED[case]
    pair = [f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]
    arguments = [item for argument in arguments for item in (pair if argument == PAIR else [argument])]
    assert_refused(arguments, message, capsys)


def test_directory_as_plot(tmp_path, capsys, nothing_runs):
    (tmp_path / "x.png").mkdir()
    assert_refused([f"--plot={tmp_path / 'x.png'}"], "is a directory; give the name of a file", capsys)


def test_what_is_not_installed(pair_dir, tmp_path, monkeypatch, capsys, nothing_runs):
    pair = [f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]
    sizes = ["--prompt-tokens=8", "--new-tokens=9"]
    monkeypatch.setitem(sys.modules, "torch", None)
    message = "--against transformers needs torch, which is not installed: pip install 'gemma4-mtp[parity]'"
    assert_refused([*pair, *sizes, "--against=transformers"], message, capsys)
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else name)
    message = "--plot needs matplotlib, which is not installed: pip install 'gemma4-mtp[tutorials]'"
    assert_refused([f"--plot={tmp_path / 'x.png'}"], message, capsys)


def test_lists_of_numbers():
    assert bench_cli.numbers("--batch", "8, 1-3,2") == (1, 2, 3, 8)


def plan_of(arguments: str) -> Plan:
    parser = argparse.ArgumentParser()
    bench_cli.add_options(parser)
    return bench_cli.plan_of(parser.parse_args(arguments.split()))


def test_options_reach_the_plan():
    """Each option under its own name; sampling and acceptance also reach the rounds."""
    sizes = "--prompt-tokens=11 --new-tokens=12 --prefill-tokens=13 --prompts=14 --runs=15"
    plan = plan_of(f"--draft-lengths=6,9 --batch=2 {sizes} --temperature=0.5 --acceptance=block")
    warm = Sampling(0.5)
    sizes = {"prompt_tokens": 11, "new_tokens": 12, "prefill_tokens": 13, "num_prompts": 14, "runs": 15}
    assert plan == Plan((6, 9), (2,), streamed=6, **sizes, sampling=warm, acceptance="block")
    assert plan.options(3) == Options(3, warm, draft_sampling=warm, acceptance="block", kernels=KERNELS)
    assert plan_of("--accept-rate=0.7") == Plan(accept_rate=0.7)
    assert plan_of("--batch=1,8 --threads=2") == Plan(batches=(1, 8), threads=2)
    assert [plan_of(f"--prompts=14 --batch={sizes}").num_prompts for sizes in ("1", "1,8", "4,6")] == [14, 16, 24]


# -- what it prints ----------------------------------------------------------------------------------------------------

GAMMAS, BATCHES = (1, 2), (1, 2)
SIZES = ["--prompt-tokens=8", "--new-tokens=6", "--prefill-tokens=20", "--prompts=2"]


@pytest.fixture(scope="module")
def bench(pair_dir):
    """Run the command on the tiny pair, with short laps; returns standard output.  Standard error is empty."""

    def run(*arguments: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        pair = [f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["bench", *pair, "--runs=1", *arguments])
        assert (code, err.getvalue()) == (0, "")
        return out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_cli, "load_average", lambda: 0.0)
        patch.setattr(machine, "COPIED_BYTES", 2**20)
        patch.setattr(machine, "SIDE", {jax.default_backend(): 64})
        patch.setattr(stages, "LAP_SECONDS", 0.001)
        yield run


@pytest.fixture(scope="module")
def found(bench) -> dict:
    """The record of a whole measurement: draft length 1, batch 2."""
    out = bench(*SIZES, "--draft-lengths=1", "--batch=2", "--json")
    assert out.count("\n") == 1
    return json.loads(out)


class FixedTimer(stages.Timer):
    """Compiles nothing; each one takes a millisecond more than the one before it."""

    compile_seconds = 0.5
    seconds = itertools.count(0.001, 0.001)

    def __init__(self, *args):
        self._seconds = next(self.seconds)

    def lap(self) -> float:
        return self._seconds


@pytest.fixture
def both(bench, monkeypatch):
    """Run the command over both batch sizes, with nothing compiled: every stage and loop takes a fixed time."""
    fixed = lambda self, group, seed=0: Lap(0.5, 8 * len(group), 5 * len(group), 5, self.options.draft_length * [0.5])
    monkeypatch.setattr(measure, "Timer", FixedTimer)
    monkeypatch.setattr(Loop, "lap", fixed)
    return functools.partial(bench, *SIZES, "--draft-lengths=1,2", "--batch=1,2")


def test_json(found):
    assert set(found) == {"subject", "machine", "plan", "prefill", "batches", "peak_bytes", "notes"}
    subject = found["subject"]
    assert set(subject) == {"name", "dtype", "parameters", "bytes", "text"}
    assert subject["bytes"] == {name: 4 * count for name, count in subject["parameters"].items()}
    assert subject["text"] == "random tokens", "only the shipped pair has chapters that are held out"
    assert (found["plan"]["draft_lengths"], found["plan"]["streamed"]) == ([1], 1)
    assert found["prefill"]["tokens"] == 20 and found["prefill"]["seconds"] > 0
    assert [entry["batch"] for entry in found["batches"]] == [2]
    assert_every_draft_length(found["batches"][0], (1,))


def assert_every_draft_length(batch: dict, gammas: tuple[int, ...]) -> None:
    lengths = lambda name: [entry["draft_length"] for entry in batch["stages"] if entry["stage"] == name]
    for name in (measure.DRAFT, measure.VERIFY, measure.PRODUCTS, measure.ACCEPT):
        assert lengths(name) == list(gammas)
    assert [len(lengths(name)) for name in (measure.STEP, measure.DRAFT_STEP)] == [1, 1]
    lengths = lambda kind: [entry["draft_length"] for entry in batch["loops"] if entry["loop"] == kind]
    assert (lengths("on the device"), lengths("streaming")) == ([0, *gammas], [0, gammas[-1]])
    for entry in batch["loops"]:
        assert entry["tokens_per_second"] > 0 and entry["seconds_per_round"] > 0
        if entry["draft_length"]:
            assert len(entry["acceptance"]) == entry["draft_length"]
            assert 1 <= entry["tokens_per_round"] <= entry["draft_length"] + 1
            assert entry["speed_up"] > 0 and ("predicted" in entry) == (entry["loop"] == "on the device")


def test_json_has_every_batch(both):
    """Twice the rows, twice the operations; weights are still read once."""
    batches = json.loads(both("--json"))["batches"]
    assert [batch["batch"] for batch in batches] == list(BATCHES)
    for batch in batches:
        assert_every_draft_length(batch, GAMMAS)
    one, two = ({entry["stage"]: entry for entry in batch["stages"]} for batch in batches)
    for name in (measure.STEP, measure.VERIFY, measure.DRAFT_STEP):
        assert two[name]["flops"] == 2 * one[name]["flops"] > 0
        assert one[name]["bytes"] < two[name]["bytes"] < 2 * one[name]["bytes"]


def test_table_of_every_batch(both):
    rows = [line.split() for line in both().splitlines()]
    for stage in ("verify", "accept"):
        assert [row[1] for row in rows if row[:1] == [stage]] == 2 * ["1", "2"]
    assert [row[3] for row in rows if row[:3] == ["on", "the", "device"]] == 2 * ["none", "1", "2"]


def test_table(bench, found):
    """Of a real run, whose code is compiled already."""
    out = bench(*SIZES, "--draft-lengths=1", "--batch=2")
    assert "parameters" not in out and "{" not in out
    assert "\nbatch 2: one stage at a time\nstage " in out and "\nbatch 2: whole loops\nloop " in out


def test_headings_of_the_tables(found):
    """The number of prompts, and the threads of each batch."""
    plan = found["plan"] | {"num_prompts": 1, "threads": 2}
    batches = [{"batch": batch, "stages": [], "loops": []} for batch in (1, 2, 8)]
    head = "\n".join(lines(found | {"plan": plan, "batches": batches}))
    assert "\n1 prompt of 8 tokens" in head and "\n2 prompts of 8 tokens" in "\n".join(lines(found))
    for batch in ("1:", "2, on the device split over 2 threads:", "8, on the device split over 2 threads:"):
        assert f"\nbatch {batch} one stage at a time\n" in head and f"\nbatch {batch} whole loops\n" in head


def test_memory_that_is_not_known(found):
    assert f" MB, at most {found['peak_bytes'] / 1e6:.0f} MB in use\n" in "\n".join(lines(found))
    (line,) = (line for line in lines(found | {"peak_bytes": None}) if line.startswith("memory: "))
    assert line.endswith(" MB") and "in use" not in line


def test_units_of_the_table(found):
    """Milliseconds, megabytes, millions of operations, per cent; nothing where there is no share."""
    entry = {"stage": "verify", "draft_length": 3, "seconds": 0.002, "compile_seconds": 1.5}
    entry |= {"bytes": 5e6, "flops": 7e6, "share_of_bandwidth": 0.5, "share_of_flops": None}
    table = lines(found | {"batches": [{"batch": 1, "stages": [entry], "loops": []}]})
    (row,) = (row.split() for row in table if row.startswith("verify"))
    assert row == ["verify", "3", "2", "5.0", "7", "50%", "1.5", "s"]


@pytest.mark.parametrize("seconds", [-0.0004, 0.0])
def test_a_difference_below_zero_is_called_noise(found, seconds):
    shares = against_machine(seconds, Work(5e6, 7e6), machine.Machine("any", 1e9, 1e9))
    entry = {"stage": "draft", "draft_length": 3, "compile_seconds": None} | shares
    table = lines(found | {"batches": [{"batch": 1, "stages": [entry], "loops": []}]})
    (row,) = (row.split() for row in table if row.startswith("draft"))
    assert row == ["draft", "3", "noise", "5.0", "7"]


class SlowPeer(peer.Transformers):
    """Takes a hundred seconds for any text; needs no torch."""

    def __init__(self):
        self.name, self.prompts = "a slow peer", set()

    def lap(self, prompt, new_tokens, draft_length):
        self.prompts.add(tuple(prompt))
        return 100.0, np.zeros(new_tokens, int)


def test_against():
    """Each engine's speed is from its own seconds, and all texts differ."""
    slow, plan = SlowPeer(), Plan(streamed=2, prompt_tokens=9, new_tokens=5, num_prompts=3, runs=1)
    found = bench_cli.against(small_subject(), slow, plan)
    for loop in ("autoregressive", "speculative"):
        assert found[loop]["their_tokens_per_second"] == 5 / 100 < found[loop]["tokens_per_second"]
    assert len(slow.prompts) == 3


def test_context(bench):
    (entry,) = json.loads(bench("--contexts=16", "--json"))["contexts"]
    assert entry["context"] == 16 and set(entry["seconds"]) == {"step", SLIDING, FULL}
    assert min(entry["seconds"].values()) > 0


def test_contexts(bench, tmp_path, monkeypatch):
    """Several, with nothing compiled, and a picture of them."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(contexts, "Timer", FixedTimer)
    file = tmp_path / "contexts.png"
    found = json.loads(bench("--contexts=16,32", "--json", f"--plot={file}"))
    assert [entry["context"] for entry in found["contexts"]] == [16, 32]
    assert found["contexts"][0]["seconds"]["step"] < found["contexts"][1]["seconds"]["step"]
    assert_picture(file)
    assert "\n16 " in "\n".join(lines(found)) and "a sliding layer's attention, us" in "\n".join(lines(found))


def assert_picture(file: Path) -> None:
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and file.stat().st_size > 1000
    assert list(file.parent.iterdir()) == [file]


def run_with(found: dict, file: Path, monkeypatch) -> int:
    """The command, with `found` as its measurement."""
    monkeypatch.setattr(bench_cli, "measure", lambda *args: found)
    monkeypatch.setattr(bench_cli, "subject_of", lambda args: small_subject())
    return main(["bench", "--new-tokens=3", "--prompt-tokens=3", "--prefill-tokens=3", f"--plot={file}"])


def test_picture(found, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert run_with(found, tmp_path / "x.png", monkeypatch) == 0
    assert_picture(tmp_path / "x.png")


@pytest.mark.parametrize("is_new", [False, True])
def test_picture_that_cannot_be_written(is_new, found, tmp_path, monkeypatch, capsys):
    """The figures are printed first; an older file stays, and no part of a new one is left."""
    figure, file = pytest.importorskip("matplotlib.figure"), tmp_path / "x.png"
    if not is_new:
        file.write_bytes(b"an older file")

    def full_disk(self, name, **how):
        Path(name).write_bytes(b"\x89PNG half")
        raise OSError("no space left")

    monkeypatch.setattr(figure.Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space left"):
        run_with(found, file, monkeypatch)
    assert "whole loops" in capsys.readouterr().out
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if is_new else [b"an older file"])


def test_measurement_that_fails_leaves_no_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(KeyError):
        run_with({}, tmp_path / "x.png", monkeypatch)
    assert not list(tmp_path.iterdir())
