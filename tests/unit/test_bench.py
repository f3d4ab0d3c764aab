"""`gemma4-mtp bench`: what it refuses, what it prints, and the measurements behind it: loops, contexts, prefill, subjects."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding import cli
from decoding.bench import cli as bench_cli
from decoding.bench import contexts, heads, loops, machine, measure, plot, prefill, stages
from decoding.bench import subject as subjects
from decoding.bench.contexts import CHUNK, cache_bytes
from decoding.bench.loops import Lap, Loop, typical
from decoding.bench.measure import Plan
from decoding.bench.report import lines
from decoding.bench.subject import LAYOUTS, Subject, from_preset, prompts, random_weights, shrunk
from decoding.generate import start
from decoding.speculative import Options, speculative_step
from drafter import Drafter
from gemma4 import PRESETS, Gemma4
from gemma4.config import FULL, SLIDING
from gemma4.storage import abstract, linear_weights, named_params
from tests.small_pair import VOCAB, small_drafter, small_target
from tests.tiny import TINY, TINY_DRAFTERS, WINDOW, random_target

RELEASED = list(PRESETS)


@functools.cache
def small_subject() -> Subject:
    return Subject("a small pair", small_target(), small_drafter(), texts=[])


# -- what it refuses ---------------------------------------------------------------------------------------------------

PAIR = "the tiny pair's directories"  # stands for its two options
REFUSED = {
    "unknown preset": (["--preset=E3B"], "--preset E3B: expected one of E2B, E4B, 12B, 26B-A4B, 31B, 50M"),
    "scale 2": (["--preset=E2B", "--scale=2"], "--scale: expected a number over 0 and up to 1, got 2"),
    "scale 0": (["--preset=E2B", "--scale=0"], "--scale: expected a number over 0 and up to 1, got 0"),
    "scale nan": (["--preset=E2B", "--scale=nan"], "--scale: expected a number over 0 and up to 1, got nan"),
    "scale without preset": (["--scale=0.5"], "--scale: only the layout of a --preset can be shrunk"),
    "preset with target": (["--preset=E2B", "--target=here"], "--preset has random weights: give it or --target"),
    "draft length 0": (["--draft-lengths=0"], "--draft-lengths: expected numbers of at least 1, got '0'"),
    "draft length x": (["--draft-lengths=x"], "--draft-lengths: expected numbers such as 1-8 or 1,2,4, got 'x'"),
    "no draft length": (["--draft-lengths="], "--draft-lengths: expected numbers such as 1-8 or 1,2,4, got ''"),
    "draft lengths falling": (["--draft-lengths=5-2"], "--draft-lengths: expected numbers of at least 1, got '5-2'"),
    "far too many": (["--draft-lengths=1-99999"], "--draft-lengths: 1-99999 is a range of more than 1000 numbers"),
    "draft length 40": (["--draft-lengths=2,40"], "--draft-lengths: expected 1 to 32 tokens a round, got 40"),
    "batch 0": (["--batch=0,8"], "--batch: expected numbers of at least 1, got '0,8'"),
    "runs 0": (["--runs=0"], "--runs: expected at least 1, got 0"),
    "runs x": (["--runs=x"], "argument --runs: invalid int value: 'x'; `gemma4-mtp bench --help` shows"),
    "prompts 0": (["--prompts=0"], "--prompts: expected at least 1, got 0"),
    "new tokens 1": (["--new-tokens=1"], "--new-tokens: expected at least 3, got 1"),
    "accept rate 2": (["--accept-rate=2"], "--accept-rate: expected a probability in 0..1, got 2"),
    "accept rate nan": (["--accept-rate=nan"], "--accept-rate: expected a probability in 0..1, got nan"),
    "temperature -1": (["--temperature=-1"], "temperature: expected a number from 1e-30 up, or 0 (greedy), got -1"),
    "block, greedy": (
        ["--acceptance=block"],
        "--acceptance block: judges sampled drafts; give a --temperature above 0",
    ),
    "block, simulated": (
        ["--acceptance=block", "--temperature=1", "--accept-rate=0.5"],
        "--acceptance block: judges sampled drafts; give a --temperature above 0, and no --accept-rate",
    ),
    "plot suffix": (["--plot=x.jpeg"], "--plot x.jpeg: expected a name that ends in .png, .svg, .pdf"),
    "plot nameless": (["--plot="], "--plot .: expected a name that ends in .png, .svg, .pdf"),
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
    "contexts too long": ([PAIR, "--contexts=16,129"], "--contexts: 129 tokens, but this model's context is 128"),
    "prompt too long": (
        [PAIR, "--prompt-tokens=100", "--new-tokens=29"],
        "--prompt-tokens and --new-tokens: 129 tokens, but this model's context is 128",
    ),
    "prefill too long": (
        [PAIR, "--prompt-tokens=8", "--new-tokens=9", "--prefill-tokens=128"],
        "--prefill-tokens: 129 tokens, but this model's context is 128",
    ),
    "no such target": (["--target=/nowhere", "--drafter=/nowhere"], "/nowhere: no such directory"),
    "target alone": (["--target=/nowhere"], "only a target directory was given"),
}


def assert_refused(arguments: list[str], message: str, capsys) -> None:
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("gemma4-mtp: error: ") and message in err


@pytest.fixture
def nothing_runs(monkeypatch):
    """A mistake that is not refused shows at once, not after minutes."""

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
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    message = "--plot needs matplotlib, which is not installed: pip install 'gemma4-mtp[tutorials]'"
    assert_refused([f"--plot={tmp_path / 'x.png'}"], message, capsys)


def test_lists_of_numbers():
    assert bench_cli.numbers("--batch", "8, 1-3,2") == (1, 2, 3, 8)


# -- what it prints ----------------------------------------------------------------------------------------------------

GAMMAS, BATCHES = (1, 2), (1, 2)
SIZES = ["--prompt-tokens=8", "--new-tokens=6", "--prefill-tokens=20", "--prompts=2"]


@pytest.fixture(scope="module")
def bench(pair_dir):
    """Run the command on the tiny pair, with short laps: standard output.  It writes no error."""

    def run(*arguments: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        pair = [f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["bench", *pair, "--runs=1", *arguments])
        assert (code, err.getvalue()) == (0, "")
        return out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "COPIED_BYTES", 2**20)
        patch.setattr(machine, "SIDE", {jax.default_backend(): 64})
        patch.setattr(stages, "LAP_SECONDS", 0.001)
        patch.setattr(measure, "LONG_DRAFT", 2)
        yield run


@pytest.fixture(scope="module")
def found(bench) -> dict:
    """The record of a whole measurement: draft length 1, batch 2."""
    out = bench(*SIZES, "--draft-lengths=1", "--batch=2", "--json")
    assert out.count("\n") == 1
    return json.loads(out)


class FixedTimer(stages.Timer):
    """Compiles nothing; each next one takes a millisecond more."""

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
    assert set(found) == {"subject", "machine", "plan", "prefill", "batches", "peak_bytes"}
    assert set(found["subject"]) == {"name", "dtype", "parameters", "bytes", "text"}
    assert (found["plan"]["draft_lengths"], found["plan"]["streamed"]) == ([1], 1)
    assert found["prefill"]["tokens"] == 20 and found["prefill"]["seconds"] > 0
    assert [entry["batch"] for entry in found["batches"]] == [2]
    assert_every_draft_length(found["batches"][0], (1,))


def assert_every_draft_length(batch: dict, gammas: tuple[int, ...]) -> None:
    lengths = lambda name: [entry["draft_length"] for entry in batch["stages"] if entry["stage"] == name]
    for name in (measure.FIRST, measure.VERIFY, measure.PRODUCTS, measure.ACCEPT):
        assert lengths(name) == list(gammas)
    assert [len(lengths(name)) for name in (measure.STEP, measure.FURTHER)] == [1, 1]
    lengths = lambda kind: [entry["draft_length"] for entry in batch["loops"] if entry["loop"] == kind]
    assert (lengths("on the device"), lengths("streaming")) == ([0, *gammas], [0, gammas[-1]])
    for entry in batch["loops"]:
        assert entry["tokens_per_second"] > 0 and entry["seconds_per_round"] > 0
        if entry["draft_length"]:
            assert len(entry["acceptance"]) == entry["draft_length"]
            assert 1 <= entry["tokens_per_round"] <= entry["draft_length"] + 1
            assert entry["speed_up"] > 0 and ("predicted" in entry) == (entry["loop"] == "on the device")


def test_json_has_every_batch(both):
    """Twice the rows, twice the operations; weights are read once all the same."""
    batches = json.loads(both("--json"))["batches"]
    assert [batch["batch"] for batch in batches] == list(BATCHES)
    for batch in batches:
        assert_every_draft_length(batch, GAMMAS)
    one, two = ({entry["stage"]: entry for entry in batch["stages"]} for batch in batches)
    for name in (measure.STEP, measure.VERIFY, measure.FIRST):
        assert two[name]["flops"] == 2 * one[name]["flops"] > 0
        assert one[name]["bytes"] < two[name]["bytes"] < 2 * one[name]["bytes"]


def test_table_of_every_batch(both):
    rows = [line.split() for line in both().splitlines()]
    for stage in ("verify", "accept"):
        assert [row[1] for row in rows if row[:1] == [stage]] == 2 * ["1", "2"]
    assert [row[3] for row in rows if row[:3] == ["on", "the", "device"]] == 2 * ["none", "1", "2"]


def test_table(bench, found):
    """Of a real run, compiled already."""
    out = bench(*SIZES, "--draft-lengths=1", "--batch=2")
    assert "parameters" not in out and "{" not in out
    assert "\nbatch 2: one stage at a time\nstage " in out and "\nbatch 2: whole loops\nloop " in out


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
    return cli.main(["bench", "--new-tokens=3", "--prompt-tokens=3", "--prefill-tokens=3", f"--plot={file}"])


def test_picture(found, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert run_with(found, tmp_path / "x.png", monkeypatch) == 0
    assert_picture(tmp_path / "x.png")


@pytest.mark.parametrize("is_new", [False, True])
def test_picture_that_cannot_be_written(is_new, found, tmp_path, monkeypatch, capsys):
    """The figures are printed first; what was there stays, and nothing half-written is left."""
    figure, file = pytest.importorskip("matplotlib.figure"), tmp_path / "x.png"
    if not is_new:
        file.write_bytes(b"of yesterday")

    def full_disk(self, name, **how):
        Path(name).write_bytes(b"\x89PNG half")
        raise OSError("no space left")

    monkeypatch.setattr(figure.Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space left"):
        run_with(found, file, monkeypatch)
    assert "whole loops" in capsys.readouterr().out
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if is_new else [b"of yesterday"])


def test_measurement_that_fails_leaves_no_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(KeyError):
        run_with({}, tmp_path / "x.png", monkeypatch)
    assert not list(tmp_path.iterdir())


def test_heads(monkeypatch):
    """At a small size; and that heads which differ are found out."""
    size = {"vocabulary": 256, "width": 16, "centroids": 32, "top_k": 8, "runs": 1}
    found = heads.time_heads(**size)
    assert all(0 < value < float("inf") for value in found.values())
    assert found["rows whose best token was scored"] > 0.9
    assert "dense" in "\n".join(lines({"heads": found}))
    monkeypatch.setattr(heads, "in_blocks", lambda table, *args: jnp.roll(table, 1, 0).reshape(32, -1, 16))
    with pytest.raises(RuntimeError, match="choose different tokens"):
        heads.time_heads(**size)


# -- loops -------------------------------------------------------------------------------------------------------------

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("gamma", [0, 3])
def test_lap_counts_what_generate_counts(gamma, on_device):
    subject, seen, how = small_subject(), [], {"max_new_tokens": 21, "on_round": lambda last: seen.append(last)}
    if gamma:
        stats = decoding.generate(subject.target, subject.drafter, PROMPTS, draft_length=gamma, **how).stats
    else:
        stats = decoding.generate_autoregressive(subject.target, PROMPTS, **how).stats
    lap = Loop(subject, 21, Options(gamma), on_device).lap(PROMPTS)
    assert (lap.tokens, lap.rounds, lap.reached) == (40, stats.rounds, stats.acceptance_per_position)
    assert stats.emitted == 42 and lap.turns == len(seen) - 1
    assert 0 < lap.seconds and lap.tokens_per_second == lap.tokens / lap.seconds
    if gamma:
        assert max(lap.reached) > 0, "no draft was accepted: nothing is shown"


def test_prefill_does_not_count(monkeypatch):
    """By a clock that a prefill moves by an hour."""
    clock = [0.0]

    def slow_start(*args):
        clock[0] += 3600
        return start(*args)

    monkeypatch.setattr(loops, "start", slow_start)
    monkeypatch.setattr(loops.time, "perf_counter", lambda: clock.append(clock.pop() + 1) or clock[0])
    assert Loop(small_subject(), 21, Options(3), False).lap(PROMPTS).seconds < 3600


def test_simulated_loop():
    """Each draft stays with the probability that was asked for, within 4 sigma; a last round is cut by the budget."""
    rows, new_tokens, gamma, rate = 32, 40, 2, 0.7
    loop = Loop(small_subject(), new_tokens, Options(gamma), on_device=True, accept_rate=rate)
    lap, other = (loop.lap(rows * [[2, 9, 4]], seed=seed) for seed in (0, 1))
    cut = rows / lap.rounds
    for place, share in enumerate(lap.reached, 1):
        expected = rate**place
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / lap.rounds) + cut
    assert lap.tokens == rows * (new_tokens - 1)
    assert lap.reached != other.reached, "another seed is another sample"


def test_typical():
    """Two prompts, three laps each: medians of seconds, sums of tokens, shares weighed by rounds."""
    first = [Lap(seconds, 30, 10, 10, [0.8, 0.4]) for seconds in (2.0, 9.0, 1.0)]
    second = [Lap(seconds, 50, 30, 15, [0.4, 0.0]) for seconds in (4.0, 3.0, 5.0)]
    lap = typical([first, second])
    assert lap[:4] == (6.0, 80, 40, 25) and lap.reached == pytest.approx([0.5, 0.1])
    assert lap.tokens_per_second == pytest.approx(80 / 6)
    assert typical([[Lap(1.0, 5, 5, 5, [])]]).reached == []


def test_stage_seconds(monkeypatch):
    """A draft step is the difference of laps that stood side by side."""
    monkeypatch.setattr(measure, "LONG_DRAFT", 8)
    names = measure
    laps = {
        (names.STEP, 0): [1.0, 2.0],
        (names.FIRST_AND_VERIFY, 2): [9.0, 11.0],
        (names.FIRST_AND_VERIFY, 3): [21.0, 35.0],
        (names.LONG_AND_VERIFY, 2): [16.0, 25.0],
        (names.VERIFY, 2): [7.0, 8.0],
        (names.VERIFY, 3): [20.0, 30.0],
    }
    assert measure.stage_seconds(laps, 2) == {
        (names.STEP, 0): [1.0, 2.0],
        (names.FIRST, 2): [2.0, 3.0],
        (names.FIRST, 3): [1.0, 5.0],
        (names.FURTHER, 1): [1.0, 2.0],
        (names.VERIFY, 2): [7.0, 8.0],
        (names.VERIFY, 3): [20.0, 30.0],
    }


def test_the_prediction_counts_rows_that_end_early():
    """Two rows of 12 tokens; one takes 4 rounds, the other 8, and the loop turns until that one is done."""
    laps = {
        (0, True): [[Lap(12.0, 24, 24, 12, [])]],
        (2, True): [[Lap(16.0, 24, 12, 8, [0.6, 0.4])]],
    }
    seconds = {
        (measure.STEP, 0): 1.0,
        (measure.FIRST, 2): 0.3,
        (measure.FURTHER, 1): 0.2,
        (measure.VERIFY, 2): 1.4,
        (measure.ACCEPT, 2): 0.1,
    }
    plain, drafted = measure.loop_entries(laps, seconds, batch=2)
    assert (plain["seconds_per_round"], drafted["seconds_per_round"]) == (1.0, 2.0)
    assert drafted["tokens_per_round"] == 2.0
    assert drafted["predicted"] == pytest.approx(1.5 * 1.0 / 2.0)
    assert drafted["speed_up"] == pytest.approx(drafted["predicted"])


def test_groups_of_prompts_are_sampled_apart(monkeypatch):
    """Runs of one group repeat it; another group has another seed."""
    seeds = []
    monkeypatch.setattr(Loop, "lap", lambda self, group, seed=0: seeds.append(seed))
    monkeypatch.setattr(measure, "stage_timers", lambda *args: {})
    monkeypatch.setattr(measure, "stage_seconds", lambda laps, streamed: {})
    monkeypatch.setattr(measure, "loop_entries", lambda *args: [])
    plan = Plan(draft_lengths=(1,), streamed=1, prompt_tokens=3, new_tokens=3, num_prompts=2, runs=2)
    measure.measure_batch(small_subject(), plan, 1, machine.Machine("none", 1.0, 1.0), lambda what: None)
    assert seeds == 4 * [0] + 2 * (4 * [0] + 4 * [1])  # once to compile; four loops


# -- contexts and prefill ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", list(TINY))
def test_bytes_of_the_cache(layout):
    """Full layers: in proportion to the context.  Sliding ones: no more than a window and a chunk."""
    config = TINY[layout]
    subject = Subject(layout, random_target(config), None, [])
    lengths = [WINDOW, WINDOW + CHUNK, 2 * (WINDOW + CHUNK), 4 * (WINDOW + CHUNK)]
    sizes = [cache_bytes(subject, context) for context in lengths]
    rows = {kind: 0 for kind in (SLIDING, FULL)}
    for layer in range(config.first_kv_shared_layer):
        rows[config.layer_types[layer]] += 2 * config.kv_heads(layer) * config.layer_head_dim(layer) * 4
    assert [size[FULL] for size in sizes] == [context * rows[FULL] for context in lengths]
    assert [size[SLIDING] for size in sizes] == [min(context, WINDOW + CHUNK) * rows[SLIDING] for context in lengths]


def test_prefill_with_every_layer(monkeypatch):
    """The same hidden row, over two chunks and a half, though the prefill leaves shared layers out."""
    target = random_target(TINY["E2B"])
    for module in (prefill, sys.modules["decoding.prefill"]):
        monkeypatch.setattr(module, "LONGEST_CHUNK", 16)
    prompt = np.random.default_rng(0).integers(0, target.config.vocab_size, 40)
    ours = prefill.read_with_every_layer(target, jnp.asarray(prompt[None]))
    expected = start(target, [prompt.tolist()], 1, Options(0), None).hidden
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


# -- subjects ----------------------------------------------------------------------------------------------------------

KEPT = (
    "layer_types",
    "num_attention_heads",
    "num_key_value_heads",
    "num_global_key_value_heads",
    "attention_k_eq_v",
    "num_kv_shared_layers",
    "use_double_wide_mlp",
    "sliding_window",
    "num_experts",
    "top_k_experts",
    "max_position_embeddings",
)
NARROWED = ("hidden_size", "intermediate_size", "head_dim", "global_head_dim", "vocab_size")


@pytest.mark.parametrize("scale", [0.02, 0.3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_shrunk(name, scale):
    """Layers, heads, experts and windows stay; widths are multiplied, up to the next multiple; the pair still fits."""
    full = LAYOUTS[name]
    target, drafter = shrunk(*full, scale)
    drafter.check_fits(target)
    for ours, theirs in ((target, full[0]), (drafter.text, full[1].text)):
        for field in KEPT:
            assert getattr(ours, field) == getattr(theirs, field), field
        for field in NARROWED:
            wanted = getattr(theirs, field) * scale
            multiple = drafter.num_centroids if field == "vocab_size" else 64
            assert wanted <= getattr(ours, field) < wanted + multiple, field
        for field in ("moe_intermediate_size", "hidden_size_per_layer_input"):
            assert bool(getattr(ours, field)) == bool(getattr(theirs, field)), field
    kept = ("use_ordered_embeddings", "num_centroids", "centroid_intermediate_top_k", "convention")
    assert all(getattr(drafter, field) == getattr(full[1], field) for field in kept)


@pytest.mark.parametrize("name", RELEASED)
def test_round_of_a_shrunk_layout(name, monkeypatch):
    """One round at scale 0.02.  Of the layers, which are alike but for their type, two or three are enough."""
    target, drafts = LAYOUTS[name]
    shared = target.num_kv_shared_layers > 0
    few = {"layer_types": (SLIDING, FULL) + shared * (FULL,), "num_kv_shared_layers": int(shared)}
    text = dataclasses.replace(drafts.text, layer_types=(SLIDING, FULL), num_kv_shared_layers=2)
    monkeypatch.setitem(LAYOUTS, name, (dataclasses.replace(target, **few), dataclasses.replace(drafts, text=text)))
    subject = from_preset(name, 0.02, "float32")
    assert subject.name == f"{name}, random weights, widths times 0.02" and subject.texts == []
    subject.drafter.config.check_fits(subject.target.config)
    prompt, options = prompts(subject, 1, 5), Options(1)
    one_round = lambda target, drafter: speculative_step(
        target, drafter, start(target, prompt, 9, options, None), options
    )
    if name not in ("E2B", "26B-A4B"):  # which take every branch of the others: those are traced, not compiled
        shapes = jax.eval_shape(one_round, subject.target, subject.drafter)
        assert shapes.hidden.shape == (1, subject.target.config.hidden_size)
        return
    state = one_round(subject.target, subject.drafter)
    assert 1 <= int(state.last.num_emitted[0]) <= 2 and np.isfinite(state.hidden).all()


def test_fifty_million():
    target, drafter = LAYOUTS["50M"]
    drafter.check_fits(target)
    size = sum(leaf.size for leaf in jax.tree.leaves(abstract(Gemma4, target, "float32")))
    assert 48e6 < size < 52e6
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(Drafter, drafter, "float32"))) < size / 10


@pytest.mark.parametrize(
    "build, config, dtype",
    [(Gemma4, TINY["26B-A4B"], "float32"), (Drafter, TINY_DRAFTERS["E2B"], "bfloat16")],
    ids=["target", "drafter"],
)
def test_random_weights(build, config, dtype):
    """Every leaf has its shape and dtype; norms and scales are 1, matrices have deviation 1/sqrt(inputs), no two alike."""
    blank = abstract(build, config, dtype)
    filled = random_weights(blank, seed=0)
    params, linear, seen = named_params(filled), linear_weights(blank), set()
    assert jax.tree.structure(filled) == jax.tree.structure(blank)
    for name, leaf in named_params(blank).items():
        value = params[name]
        assert (value.shape, value.dtype) == (leaf.shape, leaf.dtype), name
        if name.endswith("token_ordering"):
            np.testing.assert_array_equal(np.sort(value), np.arange(leaf.size))
            assert (value != np.arange(leaf.size)).any()
        elif leaf.ndim == 1:
            assert (value == 1).all(), name
        else:
            inputs = leaf.shape[0] if name in linear else leaf.shape[-1]
            assert float(value.astype(jnp.float32).std() * inputs**0.5) == pytest.approx(1, abs=0.15), name
            seen.add(np.asarray(value).tobytes())
    assert len(seen) == sum(leaf.ndim > 1 for leaf in params.values())
    assert isinstance(filled, nnx.Module)


def test_prompts():
    """Ragged; drawn at random where there is no text, else cut from one after the other, whatever the batch."""
    subject = small_subject()
    drawn = prompts(subject, 4, 32, seed=1)
    assert [len(prompt) for prompt in drawn] == [32, 30, 28, 26]
    assert all(3 <= token < VOCAB for prompt in drawn for token in prompt)
    assert drawn != prompts(subject, 4, 32, seed=2) and drawn == prompts(subject, 4, 32, seed=1)
    texts = [list(range(100)), list(range(100, 200))]
    cut = prompts(subject._replace(texts=texts), 3, 16)
    assert cut == [list(range(16)), list(range(100, 115)), list(range(14))]
    assert [prompts(subject._replace(texts=texts), 1, 2, seed) for seed in range(3)] == [
        [[0, 1]],
        [[100, 101]],
        [[0, 1]],
    ]
    assert prompts(subject._replace(texts=texts), 3, 16, seed=1)[0] == list(range(100, 116))


def test_held_out_text_begins_with_bos():
    """The shipped pair's own text, by its tokenizer."""
    pair = decoding.load_pair()
    texts = subjects.held_out(pair.tokenizer, pair.target.config)
    assert len(texts) > 1 and {text[0] for text in texts} == {pair.target.config.bos_token_id}
    assert max(map(max, texts)) < pair.target.config.vocab_size and min(map(len, texts)) > 100
