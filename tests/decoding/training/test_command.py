"""`gemma4-mtp train` and `train-drafter`: from a text file to a pair that `generate` loads; interrupted, resumed, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import decoding
from decoding.cli.main import main
from decoding.training import cli
from decoding.training.pair import SETTINGS
from tests.models import SENTENCES

SIZES = ["--window=34", "--batch=68", "--samples=2", "--draft-length=1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The process keeps its JAX settings; acceptance is measured on a few short texts."""
    monkeypatch.setattr("decoding.cli.main.keep_compiled_code", lambda: None)
    monkeypatch.setattr(cli, "MOST_PROMPTS", 2)
    monkeypatch.setattr("decoding.training.acceptance.NEW_TOKENS", 6)
    monkeypatch.setattr("decoding.training.acceptance.PROMPT_TOKENS", 8)


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text("".join(SENTENCES) * 10, encoding="utf-8")
    return tmp_path / "text.txt"


def interrupt_at(monkeypatch, stage: str) -> None:
    """Ctrl-C when the first line of this stage's log is written."""
    real = cli.described

    def described(entry):
        if entry["run"] == stage:
            raise KeyboardInterrupt
        return real(entry)

    monkeypatch.setattr(cli, "described", described)


@pytest.mark.slow
def test_a_pair_from_a_text(text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "it's out"
    command = ["train", "--size=tiny", f"--text={text}", f"--out={out}", "--steps=3", "--drafter-steps=4", *SIZES]
    for stage in ("target", "drafter-1", "drafter"):
        with monkeypatch.context() as patch:
            interrupt_at(patch, stage)
            assert main(command) == 130
        assert "interrupted; the same command resumes in " in capsys.readouterr().err
    assert not (out / "pair").exists()
    (out / ".pair.abandoned" / "new").mkdir(parents=True)

    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "target: step" not in printed, "finished stages do not run again"
    assert "tokens per round, greedy" in printed and "held out, bits per byte" in printed
    log = [json.loads(line) for line in (out / "pair" / "training_log.jsonl").read_text().splitlines()]
    assert [(entry["run"], entry["step"]) for entry in log] == [
        *(("target", step) for step in (1, 2, 3)),
        ("drafter-1", 1),
        *(("drafter", step) for step in (1, 2, 3)),
    ]
    assert all(0 < share < 1 for entry in log[3:] for share in entry["held_out_acceptance"])
    quality = json.loads((out / "pair" / "quality.json").read_text())
    assert quality["bits_per_byte"] == log[2]["held_out_bits_per_byte"] and quality["greedy"]["rounds"] > 0
    assert not list(out.glob(".pair.*")) and (out / "curves.png").stat().st_size > 1000

    pair = [f"--target={out / 'pair' / 'target'}", f"--drafter={out / 'pair' / 'drafter'}"]
    assert main(["generate", "In the", *pair, "--max-new-tokens=5", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) <= 5

    assert main([*command, "--seed=1"]) == 2
    assert "holds a training that was begun with another seed" in capsys.readouterr().err
    (out / "pair" / "quality.json").write_text("mine")
    assert main(command) == 2
    assert "is not as this recipe left it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_drafter_for_a_target(text, tmp_path, pair_dir, capsys):
    """With two layers, because compilation takes nearly all the time."""
    out, target = tmp_path / "out", shutil.copytree(pair_dir / "target", tmp_path / "target")
    command = ["train-drafter", str(target), f"--text={text}", f"--out={out}", "--steps=4", "--layers=2", *SIZES]
    command += ["--clusters=8,2", "--width=12", "--quiet"]
    assert main(command) == 0
    assert capsys.readouterr().out == ""
    pair = decoding.load_pair(target, out / "pair" / "drafter")
    config = pair.draft_model.config
    assert (config.text.hidden_size, config.num_centroids, config.centroid_intermediate_top_k) == (12, 8, 2)
    prompt = [2, *pair.tokenizer.encode("In the").ids]
    texts = [
        decoding.generate(pair.target, pair.draft_model, prompt, max_new_tokens=9, draft_length=2, loop="plain"),
        decoding.generate_autoregressive(pair.target, prompt, max_new_tokens=9, loop="plain"),
    ]
    np.testing.assert_array_equal(texts[0].tokens[0], texts[1].tokens[0])
    with (target / "config.json").open("a") as file:
        file.write("\n")
    assert main(command) == 2
    assert "holds a training that was begun with another target" in capsys.readouterr().err


REFUSED = {
    "window": (["--window=32"], "--window: expected at least 33, got 32"),
    "batch": (["--window=64", "--batch=100"], "--batch: expected at least 128 tokens, two windows, got 100"),
    "draft length": (["--draft-length=0"], "--draft-length: expected 1 to 32, got 0"),
    "steps": (["--steps=0"], "--steps: expected at least 1, got 0"),
    "drafter steps": (["--drafter-steps=1"], "--drafter-steps: expected at least 2, got 1"),
    "short text": (["--window=2000", "--batch=4000"], "--window: texts of up to 4000 tokens do not fit"),
    "few tokens": (["--window=1000", "--batch=4000"], "tokens are left for training, and a window has up to 2000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_first(case, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "run", lambda *_: pytest.fail("it trains"))
    arguments, message = REFUSED[case]
    assert main(["train", "--size=tiny", f"--text={text}", f"--out={tmp_path / 'out'}", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and message in err, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters=7,2"], "--clusters: expected a divisor of the 320 tokens"),
        (["--clusters=8"], "--clusters: expected two numbers such as 64,16, or 0"),
        (["--width=0"], "--width: expected at least 1"),
        (["--steps=1"], "--steps: expected at least 2"),
    ],
)
def test_sizes_of_a_drafter_are_checked(arguments, message, text, tmp_path, pair_dir, capsys):
    assert main(["train-drafter", str(pair_dir / "target"), f"--text={text}", f"--out={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_damaged_settings_are_named(text, tmp_path, capsys):
    (tmp_path / SETTINGS).write_text("[")
    assert main(["train", "--size=tiny", f"--text={text}", f"--out={tmp_path}", *SIZES]) == 2
    assert f"{SETTINGS}: damaged" in capsys.readouterr().err


def test_default_clusters():
    assert cli._clusters(None, 262_144) == (2048, 32)
    assert cli._clusters(None, 2048) == (64, 16)
    assert cli._clusters(None, 2049) is None and cli._clusters("0", 2048) is None
