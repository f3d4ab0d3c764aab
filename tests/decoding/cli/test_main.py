"""The command: what it prints, what it refuses, and how it ends."""

import contextlib
import errno
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import decoding
import drafter
import gemma4
from decoding.bench import cli as bench_cli
from decoding.bench.generate_timing import Figures
from decoding.cli import generate, main, timings
from decoding.fast import KERNELS
from decoding.finite import NotFinite
from decoding.generation import LOOPS
from decoding.oracle import cli as oracle_cli
from decoding.processors import FrequencyPenalty, MinP, RepetitionPenalty, logit_bias
from decoding.sampling import REFERENCE
from decoding.training.text import train_tokenizer
from drafter import Drafter
from drafter.fast import FastDrafter
from gemma4 import Gemma4, progress
from gemma4.fast.target import FastGemma4
from tests.models import SENTENCES, TINY, drafter_config, random_drafter

ROOT = Path(__file__).parents[3]
PROMPT = "In the beginning"
LENGTH, GAMMA = 12, 2  # of every text here, so that steps compile once


load_pair = functools.cache(decoding.load_pair)  # directories do not change here


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """The tests' process keeps its JAX settings, and reads each pair once."""
    monkeypatch.setattr(main, "keep_compiled_code", lambda: None)
    monkeypatch.setattr(generate, "load_pair", load_pair)
    yield
    progress.show(False)


@pytest.fixture
def quick(monkeypatch):
    """--timings measures nothing."""
    monkeypatch.setattr(timings, "measure", lambda request: Figures(None, stages={}))


@pytest.fixture
def run(pair_dir, capsys):
    """generate, on the tiny pair unless other directories are given: (exit code, standard output, standard error)."""

    def run(*arguments, target_dir=pair_dir / "target", drafter_dir=pair_dir / "drafter"):
        directories = [f"--{name}={path}" for name, path in (("target", target_dir), ("drafter", drafter_dir)) if path]
        sizes = [f"--max-new-tokens={LENGTH}", f"--draft-length={GAMMA}"]
        code = main.main(["generate", *directories, *sizes, *arguments])
        return code, *capsys.readouterr()

    return run


def expected_text(pair_dir, **settings) -> tuple[list[int], str]:
    target, draft, tokenizer = load_pair(str(pair_dir / "target"), str(pair_dir / "drafter"), "float32")
    prompt = [target.config.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False).ids]
    settings = {"draft_length": GAMMA, "eos_ids": target.config.eos_token_ids, **settings}
    tokens = decoding.generate(target, draft, prompt, max_new_tokens=LENGTH, **settings).tokens[0].tolist()
    return tokens, tokenizer.decode(tokens)


# -- what it prints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [False, True])
def test_streamed_text_is_the_decoded_text(run, pair_dir, sampled, monkeypatch):
    monkeypatch.setattr("decoding.cli.console.harmless", lambda text: text)
    options, settings = [], {}
    if sampled:
        options = ["--temperature=1", "--top-k=50", "--top-p=0.9", "--seed=3"]
        settings = {"sampling": decoding.Sampling(1.0, 50, 0.9), "key": jax.random.key(3)}
    _, text = expected_text(pair_dir, **settings)
    code, out, err = run(PROMPT, *options)
    assert (code, err) == (0, "")
    assert out.split("\n\ntokens per round")[0] == PROMPT + text, "without marks, and without a legend"
    assert run(PROMPT, "--quiet", *options) == (0, f"{PROMPT}{text}\n", "")


@pytest.fixture
def calls(monkeypatch):
    """What each call of `decoding.generate` and `decoding.generate_autoregressive` was given: (models and prompt, settings)."""
    calls = []
    for name in ("generate", "generate_autoregressive"):

        def recorded(*args, of=getattr(decoding, name), **settings):
            calls.append((args, settings))
            return of(*args, **settings)

        monkeypatch.setattr(generate, name, recorded)
    return calls


def test_acceptance_by_block_reaches_the_loop(run, calls):
    assert run(PROMPT, "--temperature=1", "--acceptance=block")[0] == 0
    assert [settings["acceptance"] for _, settings in calls] == ["block"]


def test_convention_reaches_the_drafter(run, calls):
    assert [run(PROMPT, *options)[0] for options in ([], ["--convention=vllm"])] == [0, 0]
    assert [draft.config.convention for (_, draft, _), _ in calls] == ["transformers", "vllm"]


@pytest.mark.parametrize("how", [[], ["--baseline"]], ids=["speculative", "baseline"])
def test_every_loop_gives_the_same_text(how, run, calls, pair_dir):
    for loop in ([], *([f"--loop={loop}"] for loop in LOOPS)):
        code, out, _ = run(PROMPT, "--json", *how, *loop)
        assert code == 0 and json.loads(out)["tokens"] == expected_text(pair_dir)[0]
    assert [settings["loop"] for _, settings in calls] == ["streamed", "plain", "streamed", "on_device"]


@pytest.mark.parametrize("command", ["generate", "bench", "oracle"])
def test_float32_is_multiplied_in_float32(command, monkeypatch):
    """On a CPU it always is; so only the setting can be looked at."""
    seen = []

    def look(*args):
        seen.append(jax.config.jax_default_matmul_precision)
        return main.OK

    for module in (generate, bench_cli, oracle_cli):
        monkeypatch.setattr(module, "run", look)
    monkeypatch.setattr(generate, "prepare", look)
    monkeypatch.setattr(bench_cli, "prepare", look)
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", None)
    try:
        main.main(["oracle", "mutants"] if command == "oracle" else [command])
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert set(seen) == {"highest"}


def test_text_is_out_before_anything_is_measured(run, monkeypatch):
    class Flushed(io.StringIO):
        seen = ""

        def flush(self):
            self.seen = self.getvalue()

    out, seen = Flushed(), []

    def measure(request):
        seen.append(out.seen)
        return Figures(None, stages={})

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(timings, "measure", measure)
    assert run(PROMPT, "--timings", "--marks")[0] == 0
    (before,) = seen
    assert before.startswith(PROMPT + "[") and "\ntokens per round" in before and before.count("\n") == 6
    assert out.getvalue().startswith(before + "ms for each stage")


def test_legend_and_counts(run, monkeypatch):
    monkeypatch.setattr(timings, "measure", None)
    code, out, err = run(PROMPT, "--show-rejected")
    assert (code, err) == (0, "")
    text, table = out.split("\n\n(marks")
    assert "{" in text, "a random drafter is mostly wrong"
    assert table.startswith(": drafted and accepted, [the target's own], {drafted and rejected})\n\n")
    labels = [line.split("  ")[0] for line in table.splitlines()[2:]]
    assert labels == ["tokens per round", "accepted, by draft position"] and "\x1b" not in out


def test_table_of_timings(run):
    code, out, err = run(PROMPT, "--timings")
    assert (code, err) == (0, "")
    for row in ("tokens per round", "accepted, by draft position", "ms for each stage", "speculative", "speed-up"):
        assert f"\n{row}  " in out
    assert "not measured" not in out and "\x1b" not in out


def test_colours_on_a_terminal(run, monkeypatch):
    monkeypatch.setattr(generate, "use_color", lambda out: True)
    _, out, _ = run(PROMPT)
    assert out.startswith(f"\x1b[2m{PROMPT}\x1b[0m\x1b[1;35m") and "(colours: \x1b[32m" in out
    _, out, _ = run(PROMPT, "--quiet")
    assert out.startswith(f"\x1b[2m{PROMPT}\x1b[0m\x1b[1;35m") and "colours" not in out and "tokens per" not in out
    _, out, _ = run(PROMPT, "--marks")
    assert out.startswith(f"{PROMPT}[") and "(marks: " in out and "\x1b" not in out
    for plain in ("--no-color", "--no-color --quiet"):
        _, out, _ = run(PROMPT, *plain.split())
        assert "[" not in out and "(marks" not in out and "\x1b" not in out


MEASURED = ["speculative", "autoregressive", "speed_up", "stage_seconds"]


def test_json(run, pair_dir, monkeypatch):
    monkeypatch.setattr(timings, "measure", None)
    began = time.perf_counter()
    code, out, err = run(PROMPT, "--json", "--show-rejected")
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    assert list(result) == ["tokens", "text", "stats", "timings"]
    assert (result["tokens"], result["text"]) == expected_text(pair_dir)
    stats = result["stats"]
    assert stats["emitted"] == len(result["tokens"]) and stats["drafted"] == GAMMA * stats["rounds"]
    assert len(stats["acceptance_per_position"]) == GAMMA
    assert 0 < result["timings"].pop("first_token_seconds") < time.perf_counter() - began
    assert result["timings"] == dict.fromkeys(MEASURED)


def test_json_with_timings(run):
    began = time.perf_counter()
    code, out, err = run(PROMPT, "--json", "--timings")
    assert (code, err, out.count("\n")) == (0, "", 1)
    timings = json.loads(out)["timings"]
    assert list(timings) == ["first_token_seconds", *MEASURED]
    assert 0 < timings["first_token_seconds"] < time.perf_counter() - began
    assert list(timings["stage_seconds"]) == ["draft", "verify", "accept", "rollback"]
    for speed in (timings["speculative"], timings["autoregressive"]):
        assert speed["tokens_per_second"] > 0 and speed["seconds_per_round"] > 0


def test_baseline(run, pair_dir):
    tokens, text = expected_text(pair_dir)
    code, out, _ = run(PROMPT, "--baseline", "--json", "--timings", drafter_dir=None)
    result = json.loads(out)
    assert code == 0 and (result["tokens"], result["text"]) == (tokens, text)
    assert result["timings"]["speculative"] is result["timings"]["speed_up"] is None
    assert result["timings"]["autoregressive"]["tokens_per_second"] > 0
    code, out, _ = run(PROMPT, "--baseline")
    assert code == 0 and out.endswith(f"\n\nautoregressive: {LENGTH} tokens\n") and "(marks" not in out
    code, out, _ = run(PROMPT, "--baseline", "--timings")
    assert code == 0 and f"\nautoregressive: {LENGTH} tokens\nautoregressive: " in out and " tokens/s (compiled" in out


def test_timings_are_of_the_loop_that_ran(run, calls, monkeypatch):
    """The stages, too: for the plain loop the models as loaded, for others their twins."""
    staged = []
    monkeypatch.setattr(timings, "time_stages", lambda *args: staged.append(args) or {})
    for loop in LOOPS:
        assert run(PROMPT, "--timings", f"--loop={loop}")[0] == 0
        assert {settings["loop"] for _, settings in calls} == {loop}
        calls.clear()
    assert [(type(target), type(draft)) for target, draft, *_ in staged] == [(Gemma4, Drafter)] + 2 * [
        (FastGemma4, FastDrafter)
    ]
    assert [options.kernels for *_, options, _ in staged] == [REFERENCE, KERNELS, KERNELS]


def test_prompt_ids_are_taken_as_they_are(run, pair_dir):
    target, draft, _ = load_pair(str(pair_dir / "target"), str(pair_dir / "drafter"), "float32")
    settings = {"max_new_tokens": LENGTH, "draft_length": GAMMA, "eos_ids": target.config.eos_token_ids}
    _, out, _ = run("--prompt-ids= 7,19 300", "--json")
    assert json.loads(out)["tokens"] == decoding.generate(target, draft, [7, 19, 300], **settings).tokens[0].tolist()


def test_a_users_turn(run, pair_dir, tmp_path, calls):
    tokenizer = train_tokenizer(SENTENCES, 300)
    tokenizer.add_tokens(["<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"])
    target = shutil.copytree(pair_dir / "target", tmp_path / "target")
    tokenizer.save(str(target / "tokenizer.json"))
    for mode in ("plain", "empty-thought", "thinking"):
        code, out, _ = run("Hello", f"--chat={mode}", "--marks", target_dir=target)
        assert code == 0 and out.startswith("Hello[")
    plain = "<bos><|turn>user\nHello<turn|>\n<|turn>model\n"
    expected = [
        plain,
        plain + "<|channel>thought\n<channel|>",
        plain.replace("<bos>", "<bos><|turn>system\n<|think|>\n<turn|>\n"),
    ]
    assert [tokenizer.decode(prompt, skip_special_tokens=False) for (_, _, prompt), _ in calls] == expected


def test_what_changes_the_distribution(run, calls, pair_dir):
    """Each option reaches the loops as its processor, in one order; the text is that of Python's `generate`."""
    options = ["--presence-penalty=0.5", "--frequency-penalty=2", "--repetition-penalty=1.3", "--min-p=0.05"]
    bias = {5: 30.0, 9: -3.0}
    expected = [RepetitionPenalty(1.3), FrequencyPenalty(2.0, 0.5), logit_bias(bias), MinP(0.05)]
    code, out, _ = run(PROMPT, "--json", *options, *(f"--logit-bias={i}={x}" for i, x in bias.items()))
    given = calls[0][1]["processors"]
    assert [type(processor) for processor in given] == [type(processor) for processor in expected]
    jax.tree.map(np.testing.assert_array_equal, given, tuple(expected))
    tokens = json.loads(out)["tokens"]
    assert code == 0 and tokens == expected_text(pair_dir, processors=expected)[0] != expected_text(pair_dir)[0]
    assert run(PROMPT)[0] == 0 and calls[-1][1]["processors"] == ()


def test_stop(run, pair_dir):
    tokens, text = expected_text(pair_dir)
    stop = text[len(text) // 2 :][:2]
    code, out, _ = run(PROMPT, "--json", "--stop=never there", f"--stop={stop}")
    result = json.loads(out)
    assert code == 0 and result["tokens"] == tokens[: len(result["tokens"])] != tokens
    assert stop in result["text"]


@pytest.mark.parametrize("how", [[], ["--baseline"]], ids=["speculative", "baseline"])
def test_logprobs(run, pair_dir, how):
    _, out, _ = run(PROMPT, "--json", "--logprobs", *how)
    result = json.loads(out)
    pair = load_pair(str(pair_dir / "target"), str(pair_dir / "drafter"), "float32")
    prompt = [2, *pair.tokenizer.encode(PROMPT, add_special_tokens=False).ids]
    logits = gemma4.forward(pair.target, [prompt + result["tokens"]]).logits[0, len(prompt) - 1 : -1]
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(result["tokens"])), result["tokens"]]
    np.testing.assert_allclose(result["logprobs"], expected, atol=1e-4)
    _, out, _ = run(PROMPT, "--logprobs", *how)
    lines = out.split("log-probability, id, token\n")[1].splitlines()[: len(expected)]
    assert [int(line.split()[1]) for line in lines] == result["tokens"]
    np.testing.assert_allclose([float(line.split()[0]) for line in lines], expected, atol=2e-4)


@pytest.mark.parametrize("kind", ["text", "files", "ids"])
def test_several_prompts(kind, run, pair_dir, tmp_path):
    """Each text is what the prompt alone gives, with the seed of its place."""
    texts, sampled = [PROMPT, "God", "the heaven and"], ["--temperature=1"]
    tokenizer = load_pair(str(pair_dir / "target"), str(pair_dir / "drafter"), "float32").tokenizer
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    ids = [[2, *tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]
    given = {
        "text": texts,
        "files": [f"--prompt-file={file}" for file in files],
        "ids": [f"--prompt-ids={','.join(map(str, row))}" for row in ids],
    }[kind]
    code, out, _ = run(*given, "--json", "--seed=5", *sampled)
    found = json.loads(out)
    assert code == 0 and list(found) == ["texts", "stats", "timings"]
    alone = [
        json.loads(run(*one, "--json", f"--seed={5 + i}", *sampled)[1])
        for i, one in enumerate(map(lambda x: [x], given))
    ]
    assert found["texts"] == [{"tokens": one["tokens"], "text": one["text"]} for one in alone]
    assert len({str(one["tokens"]) for one in alone}) == 3
    if kind == "text":
        _, out, _ = run(*given, "--seed=5", "--quiet", *sampled)
        assert out == "\n".join(f"{text}{one['text']}\n" for text, one in zip(texts, alone, strict=True))


def test_without_a_tokenizer(run, pair_dir, tmp_path):
    target = shutil.copytree(pair_dir / "target", tmp_path / "target")
    (target / "tokenizer.json").unlink()
    code, out, _ = run("--prompt-ids=2,7", "--json", target_dir=target)
    assert code == 0 and json.loads(out)["text"] is None
    tokens = json.loads(out)["tokens"]
    _, out, _ = run("--prompt-ids=2,7", "--baseline", target_dir=target)
    assert out.startswith(" ".join(map(str, [2, 7, *tokens])) + " \n")


def test_text_ends_at_the_targets_eos(run, pair_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "time_stages", lambda *args: {})
    tokens, _ = expected_text(pair_dir)
    target = shutil.copytree(pair_dir / "target", tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, tokens[0]]}))
    code, out, _ = run(PROMPT, "--json", "--timings", target_dir=target)
    result = json.loads(out)
    assert code == 0 and result["tokens"] == tokens[:1]
    assert result["timings"]["speculative"] is result["timings"]["autoregressive"] is None
    code, out, _ = run(PROMPT, "--timings", target_dir=target)
    assert code == 0 and out.count("not measured: the text ended with its first token") == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_terminal_is_told_what_takes_its_time(is_quiet, run, quick, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    code, out, _ = run(PROMPT, "--json", *(["--quiet"] if is_quiet else ["--timings"]))
    assert code == 0 and json.loads(out)
    assert (err.getvalue() == "") == is_quiet
    assert is_quiet or "compiling (later starts are quicker)" in err.getvalue()


def test_notices_are_gone_before_text_comes(run, quick, monkeypatch):
    events = []

    @contextlib.contextmanager
    def notice(what):
        events.append(what.split()[0])
        yield
        events.append("gone")

    monkeypatch.setattr(generate, "progress", notice)
    monkeypatch.setattr(generate.Printer, "prompt", lambda *args: events.append("prompt"))
    monkeypatch.setattr(generate.Printer, "end", lambda *args: events.append("end"))
    run(PROMPT, "--timings")
    assert events == ["compiling", "gone", "prompt", "end", "measuring", "gone"]


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main.main(arguments)
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert 'gemma4-mtp generate "In the beginning"' in out and max(map(len, out.splitlines())) <= 120
    if "generate" in arguments:
        for part in (
            "--draft-length N",
            "(64)",
            "bold magenta",
            "[the target's own]",
            "130 interrupted",
            "--prompt-file FILE",
            "16 MiB",
            "--quiet",
            "--marks",
            "--timings, else null",
        ):
            assert part in out


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_is_the_same_whichever_command_is_named(command):
    """So the lines that are listed without a command's own parser are those of the parser."""
    assert main.make_parser(command).format_help() == main.make_parser(None).format_help()
    words = " ".join(main.make_parser(None).format_help().split())  # argparse breaks the line after the longest name
    assert all(f" {name} {line} " in words for name, line in main.COMMANDS.items())


IMPORTED = """
import contextlib, io, sys
from decoding.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(*sorted({".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("decoding.")}))
print("decoding.cli.timings" in sys.modules)
"""


TOOLS = {f"decoding.{name}" for name in ("bench", "course", "oracle", "planning", "trace", "training")}


@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        (["generate", PROMPT, f"--max-new-tokens={LENGTH}", "--target={}/target", "--drafter={}/drafter"], set()),
        (["generate", "--help"], set()),
        (["--help"], set()),
        (["bench", "--help"], {"decoding.bench"}),
        (["oracle", "--help"], {"decoding.oracle"}),
        (["trace", "--help"], {"decoding.bench", "decoding.trace"}),
        (["train", "--help"], {"decoding.training"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_only_its_own_package(arguments, packages, pair_dir, tmp_path):
    command = [sys.executable, "-c", IMPORTED, *(argument.format(pair_dir) for argument in arguments)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    imported, has_timings = done.stdout.splitlines()
    assert (set(imported.split()) & TOOLS, has_timings) == (packages, "False")


# -- what it refuses ---------------------------------------------------------------------------------------------------

REFUSED = {
    "unknown option": (["x", "--frobnicate"], "unrecognized arguments: --frobnicate; `gemma4-mtp --help`"),
    "shortened option": (["x", "--max", "3"], "unrecognized arguments: --max 3; "),
    "no prompt": (
        [],
        "expected one prompt, or several of one kind, as TEXT, --prompt-file, --prompt-ids; got none of them",
    ),
    "two prompts": (
        ["x", "--prompt-ids=2"],
        "as TEXT, --prompt-file, --prompt-ids; got TEXT and --pr",
    ),
    "text and file": (["x", "--prompt-file=y"], "got TEXT and --prompt-file"),
    "no such file": (["--prompt-file=/nowhere"], "--prompt-file /nowhere: no such file; name a text file in UTF-8"),
    "no file name": (["--prompt-file=\0"], "--prompt-file \\x00: cannot be read ("),
    "a directory": (["--prompt-file=/"], "--prompt-file /: expected a file, got a directory"),
    "a device": (
        ["--prompt-file=/dev/zero"],
        "--prompt-file /dev/zero: expected a regular file, got a device or a pipe; give - as TEXT to read a pipe",
    ),
    "figures and no figures": (
        ["x", "--quiet", "--timings"],
        "--timings prints figures, and --quiet prints nothing but",
    ),
    "a turn of ids": (["--prompt-ids=2", "--chat=plain"], "--chat: expected TEXT, what a user says, got --prompt-ids"),
    "a turn for no chat": (
        ["x", "--chat=plain"],
        "--chat: the tokenizer has no token <|turn>: expected that of a Gemma 4",
    ),
    "empty text": ([""], "TEXT: the prompt is empty: expected a text of at least one character"),
    "empty ids": (["--prompt-ids= , "], "--prompt-ids: the prompt is empty: expected at least one token id"),
    "text for ids": (
        ["--prompt-ids=2,x"],
        "--prompt-ids: expected token ids separated by commas, such as 2,17,94, got '2,x'",
    ),
    "id too large": (["--prompt-ids=2,320"], "token id 320 is out of range: this model's vocabulary is 0..319"),
    "id negative": (["--prompt-ids=-1"], "token id -1 is out of range: this model's vocabulary is 0..319"),
    "id enormous": (["--prompt-ids=99999999999999999999"], "--prompt-ids: expected token ids separated by commas"),
    "bytes that are no text": (["\udcff"], "TEXT: expected UTF-8, got bytes that are not"),
    "past the context": (
        ["--prompt-ids=2,7", "--max-new-tokens=127"],
        "the prompt has 2 tokens, and 127 new ones exceed this model's context of 128: shorten the prompt, or ask for "
        "at most 126 new tokens",
    ),
    "no new tokens": (["x", "--max-new-tokens=0"], "--max-new-tokens: expected at least 1, got 0"),
    "nothing drafted": (["x", "--draft-length=0"], "--draft-length: expected 1 to 32 tokens a round, got 0; "),
    "too much drafted": (["x", "--draft-length=33"], "--draft-length: expected 1 to 32 tokens a round, got 33; "),
    "no number": (
        ["x", "--draft-length=four"],
        "argument --draft-length: expected a number of tokens or auto, got 'four'",
    ),
    "auto and timings": (
        ["x", "--draft-length=auto", "--timings"],
        "--timings: needs one draft length, and --draft-length auto",
    ),
    "auto in one call": (["x", "--draft-length=auto", "--loop=on_device"], "--loop on_device: needs one draft length"),
    "negative temperature": (
        ["x", "--temperature=-0.5"],
        "temperature: expected a number from 0 (greedy) up, got -0.5",
    ),
    "temperature nan": (
        ["x", "--temperature=nan"],
        "temperature: expected a number from 0 (greedy) up, got nan",
    ),
    "top_p 0": (["x", "--top-p=0"], "top_p: expected a probability from 1e-30 to 1, got 0"),
    "top_p of less than float32": (
        ["x", "--top-p=1e-40"],
        "top_p: expected a probability from 1e-30 to 1, got 1e-40",
    ),
    "top_p above 1": (["x", "--top-p=1.5"], "top_p: expected a probability from 1e-30 to 1, got 1.5"),
    "top_k negative": (["x", "--top-k=-1"], "top_k: expected a number of tokens, or 0 for all, got -1"),
    "seed negative": (["x", "--seed=-1"], "--seed: expected a number in 0..4294967295, got -1"),
    "seed past 32 bits": (["x", f"--seed={2**32}"], "--seed: expected a number in 0..4294967295, got 4294967296"),
    "several to be measured": (["x", "y", "--timings"], "--timings: expected one prompt, which is measured, got 2"),
    "standard input and a text": (["x", "-"], "TEXT: expected - alone, one prompt from standard input, got 2 texts"),
    "more prompts than fit": (["x"] * 257, "TEXT: expected at most 256 prompts at once, got 257"),
    "second prompt past the context": (
        ["--prompt-ids=2,7", f"--prompt-ids={','.join('7' * 120)}"],
        "prompt 1 has 120 tokens, and 12 new ones exceed this model's context of 128",
    ),
    "nothing to stop at": (["x", "--stop="], "--stop: expected a text of at least one character, got an empty one"),
    "min_p 0": (["x", "--min-p=0"], "--min-p: expected a number over 0 and up to 1, got 0"),
    "min_p nan": (["x", "--min-p=nan"], "--min-p: expected a number over 0 and up to 1, got nan"),
    "repetition 0": (["x", "--repetition-penalty=0"], "--repetition-penalty: expected a number over 0 (1 changes"),
    "frequency inf": (["x", "--frequency-penalty=inf"], "--frequency-penalty: expected a finite number, got inf"),
    "presence nan": (["x", "--presence-penalty=nan"], "--presence-penalty: expected a finite number, got nan"),
    "bias without a number": (
        ["x", "--logit-bias=17"],
        "--logit-bias: expected an id and a number of at most 1e30, such as",
    ),
    "bias of no id": (["x", "--logit-bias=a=1"], "such as 17=-2.5, got 'a=1'"),
    "bias past the vocabulary": (
        ["x", "--logit-bias=320=1"],
        "--logit-bias: expected ids of this model's vocabulary, 0..319, got 320",
    ),
    "dtype": (["x", "--dtype=int8"], "argument --dtype: invalid choice: 'int8' (choose from "),
    "loop": (["x", "--loop=fast"], "argument --loop: invalid choice: 'fast' (choose from "),
}


def assert_refused(result, message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("gemma4-mtp: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments(case, run):
    arguments, message = REFUSED[case]
    assert_refused(run(*arguments), message)


@pytest.mark.parametrize(
    "case",
    [
        "nothing drafted",
        "too much drafted",
        "no new tokens",
        "top_k negative",
        "top_p 0",
        "negative temperature",
        "seed negative",
    ],
)
def test_settings_are_refused_before_the_models_are_read(case, run, monkeypatch):
    monkeypatch.setattr(generate, "load_pair", None)
    arguments, message = REFUSED[case]
    assert_refused(run(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND; "),
        (["In the beginning"], "invalid choice: 'In the beginning'"),
        (["generate", "x", "--target=DIR"], "--target needs --drafter: name both directories, or add --baseline"),
        (["generate", "x", "--drafter=DIR"], "--drafter needs --target: name both directories, or neither"),
        (["generate", "x", "--drafter=DIR", "--baseline"], "--drafter needs --target"),
    ],
)
def test_bad_commands(arguments, message, capsys):
    assert_refused((main.main(arguments), *capsys.readouterr()), message)


def test_a_message_is_one_harmless_line_of_a_sane_length(run, capsys):
    cases = [
        run("x", "--\x1b]0;title\x07\x9b1m\u202e"),
        run("x", f"--prompt-ids={'9' * 100_000}", target_dir=None, drafter_dir=None),
        run("--prompt-ids=" + "9," * 100_000 + "\x1b"),
        run("x", target_dir="/\x1b[2J\n/" + 10_000 * "y"),
        run("x", "--draft-length=" + 10_000 * "y"),
        (main.main(["bench", "--batch=" + 10_000 * "y"]), *capsys.readouterr()),
    ]
    for code, out, err in cases:
        assert (code, out) == (2, "") and err.removesuffix("\n").isprintable() and len(err) < 1100
    assert "--\\x1b]0;title\\x07\\x9b1m\\u202e" in cases[0][2]


def test_a_message_keeps_its_beginning_and_its_advice(capsys):
    assert main.mistake("DIR: " + 5000 * "x" + "; fetch it again") == 2
    err = capsys.readouterr().err
    assert err.startswith("gemma4-mtp: error: DIR: xx") and err.endswith("x; fetch it again\n") and " ... " in err


def test_home(pair_dir, tmp_path, run, monkeypatch):
    monkeypatch.setenv("HOME", str(pair_dir))
    (tmp_path / "p").write_text(PROMPT)
    expected = run(PROMPT, "--json")[1]
    assert (
        json.loads(run(PROMPT, "--json", target_dir="~/target", drafter_dir="~/drafter")[1])["tokens"]
        == (json.loads(expected)["tokens"])
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = run("--prompt-file=~/p", "--json")
    assert code == 0 and json.loads(out)["tokens"] == json.loads(expected)["tokens"]


# -- prompts from elsewhere --------------------------------------------------------------------------------------------


@pytest.fixture
def tokens_of(run, tmp_path, monkeypatch):
    """Tokens that follow a prompt which comes from a file and from standard input, or the one error line of both."""

    def tokens_of(content: bytes) -> list:
        (tmp_path / "prompt.txt").write_bytes(content)
        results = []
        for how in ([f"--prompt-file={tmp_path / 'prompt.txt'}"], ["-"]):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            result = run(*how, "--json")
            if result[0]:
                assert_refused(result, "")
                results.append(result[2].split(": ", 3)[3])
            else:
                results.append(json.loads(result[1])["tokens"])
        assert results[0] == results[1]
        return results[0]

    return tokens_of


def test_prompt_from_a_file_and_from_standard_input(tokens_of, run, pair_dir):
    expected = expected_text(pair_dir)[0]
    for ending in ("", "\n", "\r\n"):
        assert tokens_of(f"{PROMPT}{ending}".encode()) == expected, "without the last line break"
    assert tokens_of(b"\xef\xbb\xbf" + PROMPT.encode()) == expected, "without a byte-order mark"
    for text in (f"{PROMPT}\n\n", f"{PROMPT} \r"):
        as_argument = json.loads(run(text.removesuffix("\n"), "--json")[1])["tokens"]
        assert tokens_of(text.encode()) == as_argument


def test_content_that_is_no_prompt(tokens_of):
    for empty in (b"", b"\n"):
        assert tokens_of(empty).startswith("the prompt is empty: expected a text of at least one character")
    assert tokens_of(b"abc\xff") == "expected UTF-8, got the byte 0xff at 3; convert it to UTF-8\n"
    assert (
        tokens_of(b"a" * (generate.MAX_PROMPT_BYTES + 1)) == "expected at most 16 MiB of text, got more; shorten it\n"
    )


def test_files_that_cannot_be_read(run, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    assert_refused(run(f"--prompt-file={tmp_path / 'fifo'}"), "fifo: expected a regular file, got a device or a pipe")
    monkeypatch.setattr(Path, "open", lambda *args: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    (tmp_path / "p").touch()
    assert_refused(
        run(f"--prompt-file={tmp_path / 'p'}"), f"--prompt-file {tmp_path}/p: cannot be read (Permission denied)"
    )
    monkeypatch.setattr(sys, "stdin", None)
    assert_refused(run("-"), "standard input is closed: expected a prompt, because TEXT is -")


def test_bos_spelt_out_is_not_doubled(pair_dir):
    def prompt(text):
        return generate.prepare(
            main.parse(["generate", text, f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"])
        ).prompt

    once = prompt("In")
    assert once[0] == 2 and once.count(2) == 1
    assert prompt("<bos>In") == once
    assert prompt("<bos><bos>In") == [2, *once], "only what the command would add is left out"


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main.main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out == f"gemma4-mtp {gemma4.__version__}\n"


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lacking(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors")


def other_architecture(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))


def wrong_kinds(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    nested = config.get("text_config", config)
    nested["num_attention_heads"] = "four"
    (directory / "config.json").write_text(json.dumps(config))


def no_object(directory: Path) -> None:
    (directory / "config.json").write_text("[1, 2]")


DAMAGE = {
    "no directory": (shutil.rmtree, "no such directory"),
    "no configuration": (lambda directory: (directory / "config.json").unlink(), "config.json: missing"),
    "no weights": (
        lambda directory: (directory / "model.safetensors").unlink(),
        "no weights; expected model.safetensors",
    ),
    "missing tensor": (lacking, "the tensors do not fit config.json; are both files of the same model? 1 missing: "),
    "truncated weights": (truncate, "not a whole safetensors file"),
    "other architecture": (other_architecture, "model_type: expected one of gemma4"),
    "wrong kinds": (wrong_kinds, "num_attention_heads must be a whole number in 1..2147483646, got 'four'"),
    "not an object": (no_object, "expected a JSON object, got a list"),
}


@pytest.mark.parametrize("half", ["target", "drafter"])
@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_directories(case, half, run, pair_dir, tmp_path):
    damage, message = DAMAGE[case]
    directory = shutil.copytree(pair_dir / half, tmp_path / half)
    damage(directory)
    result = run(PROMPT, **{f"{half}_dir": directory})
    assert_refused(result, message)
    assert str(directory) in result[2]


def test_pair_that_does_not_fit(run, tmp_path):
    drafter.export_hf(random_drafter(drafter_config(TINY["12B"], clustered=False)), tmp_path / "drafter")
    assert_refused(
        run(PROMPT, drafter_dir=tmp_path / "drafter"), "drafter and target do not fit (vocab_size: drafter 64, "
    )


def test_directories_the_wrong_way_round(run, pair_dir):
    swapped = run(PROMPT, target_dir=pair_dir / "drafter", drafter_dir=pair_dir / "target")
    assert_refused(swapped, "got 'gemma4_assistant'; this is not the configuration of a Gemma 4 target")


def test_text_without_a_tokenizer(run, pair_dir, tmp_path):
    target = shutil.copytree(pair_dir / "target", tmp_path / "target")
    (target / "tokenizer.json").unlink()
    assert_refused(run(PROMPT, target_dir=target), "no tokenizer.json, so TEXT cannot be read; give --prompt-ids")


@pytest.mark.parametrize("command", ["generate", "bench", "oracle"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("Backend 'bogus'\nis not known"), AssertionError(), AttributeError("'NoneType' has no 'devices'")],
    ids=lambda error: type(error).__name__,
)
def test_no_device(command, error, capsys, monkeypatch):
    """JAX 0.10.2 raises the first for an unknown name, the second for cuda without its plugin, the third under -O."""

    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "bogus")
    reason = " (Backend 'bogus' is not known)" * isinstance(error, RuntimeError)
    result = (main.main(["oracle", "mutants"] if command == "oracle" else [command]), *capsys.readouterr())
    assert_refused(result, f"JAX_PLATFORMS=bogus: JAX finds no such device here{reason}; unset it, or set it to cpu")


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_interrupt_is_quiet(run, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "prepare", interrupt)
    assert run(PROMPT) == (130, "", "")


def test_bug_keeps_its_traceback(run, monkeypatch):
    def bug(*args):
        raise ValueError("not a mistake of the user's")

    monkeypatch.setattr(generate, "run", bug)
    with pytest.raises(ValueError, match="not a mistake"):
        run(PROMPT)


@pytest.mark.parametrize("how", [[], ["--baseline"]], ids=["speculative", "baseline"])
def test_numbers_that_are_not_finite(how, run, pair_dir, tmp_path):
    target = shutil.copytree(pair_dir / "target", tmp_path / "target")
    tensors = load_file(target / "model.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * np.nan}, target / "model.safetensors")
    assert_refused(run(PROMPT, *how, target_dir=target), "not finite")


@pytest.mark.parametrize("name", ["generate", "generate_autoregressive"])
def test_numbers_that_stop_being_finite(name, run, monkeypatch):
    """The text so far keeps its line, and the message has one of its own.  Another ValueError is a bug."""

    def fails(*args, on_round, of=getattr(decoding, name), **settings):
        of(*args, on_round=on_round, **settings)
        raise error

    monkeypatch.setattr(generate, name, fails)
    message = "the logits are not finite: look for damaged weights"
    error = NotFinite(message)
    code, out, err = run(PROMPT, *["--baseline"] * (name == "generate_autoregressive"))
    assert (code, err) == (2, f"gemma4-mtp: error: {message}\n")
    assert out.startswith(PROMPT) and out.endswith("\n") and "tokens" not in out
    error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        run(PROMPT, *["--baseline"] * (name == "generate_autoregressive"))


OUT_OF_MEMORY = [
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1234 bytes."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("where", ["load_pair", "generate"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory(error, where, run, monkeypatch):
    def fails(*args, **settings):
        raise error

    monkeypatch.setattr(generate, where, fails)
    assert_refused(run(PROMPT), "out of memory; choose a smaller model, --dtype bfloat16 or fewer tokens, or end other")


def test_other_failures_of_jax_are_bugs(run, monkeypatch):
    def fails(*args, **settings):
        raise jax.errors.JaxRuntimeError("INTERNAL: at fault")

    monkeypatch.setattr(generate, "generate", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="at fault"):
        run(PROMPT)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_closed_stream(name, run, monkeypatch):
    """`>&-` and `2>&-`: what would be written there is lost, and nothing else changes."""
    monkeypatch.setattr(sys, name, None)
    code, out, err = run(PROMPT)
    getattr(sys, name).close()
    assert (code, err) == (0, "") and bool(out) == (name == "stderr")


@pytest.mark.parametrize(
    "arguments",
    [[PROMPT], [PROMPT, "--timings"], [PROMPT, "--json"], ["--help"]],
    ids=["text", "timings", "json", "help"],
)
def test_full_disk(arguments, run, quick, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert_refused(
            run(*arguments), "standard output (or a file that was being written): no space left on the device; "
        )


def test_standard_error_is_full(run, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run("x", "--draft-length=0") == (2, "", "")


def environment(cache: Path, platforms: str = "cpu") -> dict[str, str]:
    """Of a process of its own."""
    given = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platforms}
    given.pop("JAX_COMPILATION_CACHE_DIR", None)
    return given


def start(pair_dir, cache: Path, *arguments, platforms: str = "cpu", **settings) -> subprocess.Popen:
    settings = {"env": environment(cache, platforms), **settings}
    command = [sys.executable, "-m", *arguments, "--target", pair_dir / "target", "--drafter", pair_dir / "drafter"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A run of the tests in the background hands on an ignored SIGINT, and the command respects that.
    settings = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **settings}
    return subprocess.Popen(command, **pipes, **settings)


@pytest.mark.slow
def test_real_processes(pair_dir, tmp_path):
    arguments = ("generate", PROMPT, f"--max-new-tokens={LENGTH}", "--baseline")
    (tmp_path / "a file").touch()
    for module, cache in (("decoding", tmp_path / "cache"), ("gemma4", tmp_path / "a file")):
        out, err = start(pair_dir, cache, module, *arguments).communicate(timeout=120)
        assert (out[: len(PROMPT)], err) == (PROMPT.encode(), b""), "a cache directory that cannot be made is no error"
    assert any((tmp_path / "cache" / "gemma4-mtp").iterdir()), "compiled code is kept"

    interrupted = start(pair_dir, tmp_path / "cache", "gemma4", *arguments)
    assert interrupted.stdout.read(1) == PROMPT[:1].encode()
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.communicate(timeout=120)[1] == b"" and interrupted.returncode == 130

    no_device = start(pair_dir, tmp_path / "cache", "gemma4", *arguments, platforms="bogus")
    out, err = no_device.communicate(timeout=120)
    assert_refused(
        (no_device.returncode, out.decode(), err.decode()), "JAX_PLATFORMS=bogus: JAX finds no such device here ("
    )

    reader_gone = start(pair_dir, tmp_path / "cache", "decoding", *arguments)
    reader_gone.stdout.close()
    assert reader_gone.stderr.read() == b"" and reader_gone.wait(timeout=120) == 141
    reader_gone.stderr.close()


BARE = """
import sys, warnings
warnings.filterwarnings("ignore", "only soft file lock")  # filelock's, which has other means on Windows
sys.modules.update(dict.fromkeys(["resource", "fcntl", "pwd", "grp", "termios"]))  # as on Windows
from gemma4.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("command", ["--help", "generate --help", "bench --help", "oracle --help"])
def test_help_without_modules_of_posix(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BARE, *command.split()], env=environment(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: gemma4-mtp")


NOBODY = """
import pwd, sys

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown
from gemma4.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [BARE, NOBODY], ids=["without POSIX", "unknown user"])
def test_generate_without_a_home(code, pair_dir, tmp_path):
    given = environment(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        given.pop(name, None)
    directories = [f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]
    command = [sys.executable, "-c", code, "generate", PROMPT, "--quiet", f"--max-new-tokens={LENGTH}", *directories]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(PROMPT)
    assert not list(tmp_path.iterdir()), "there is no place for compiled code"
    command[-1] = "--drafter=~/drafter"
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert_refused(
        (done.returncode, done.stdout, done.stderr), "argument --drafter: the home directory of '~/drafter' is not"
    )


@pytest.mark.slow
def test_with_64_bits(pair_dir, tmp_path):
    """The text is the same, and figures are measured, too."""
    outputs = []
    arguments = ("gemma4", "generate", PROMPT, f"--max-new-tokens={LENGTH}", "--temperature=1", "--json", "--timings")
    for bits in ("0", "1"):
        given = environment(tmp_path) | {"JAX_ENABLE_X64": bits}
        process = start(pair_dir, tmp_path, *arguments, env=given)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, b"")
        outputs.append(json.loads(out)["tokens"])
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_an_absent_platform_under_optimization(pair_dir, tmp_path):
    """`-O` leaves out the assertion by which jax 0.10.2 says so."""
    command = [sys.executable, "-O", "-m", "gemma4", "generate", PROMPT]
    done = subprocess.run(command, env=environment(tmp_path, "cuda"), capture_output=True, text=True)
    if done.returncode:  # no GPU here
        assert_refused((done.returncode, done.stdout, done.stderr), "JAX_PLATFORMS=cuda: JAX finds no such device here")


def prepared(pair_dir, *arguments, target=None) -> generate.Request:
    directories = [f"--target={target or pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]
    return generate.prepare(main.parse(["generate", PROMPT, *directories, *arguments]))


@pytest.mark.parametrize("how", [[], ["--baseline"]], ids=["speculative", "baseline"])
def test_dtype_reaches_the_models(pair_dir, how):
    ready = prepared(pair_dir, "--dtype=bfloat16", *how)
    assert {model.embed_tokens.weight.dtype.name for model in (ready.target, ready.draft_model) if model} == {
        "bfloat16"
    }


def test_a_tokenizer_that_would_add_a_second_bos(pair_dir, tmp_path):
    target = shutil.copytree(pair_dir / "target", tmp_path / "target")
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(target / "tokenizer.json"))
    assert prepared(pair_dir, target=target).prompt == prepared(pair_dir).prompt
