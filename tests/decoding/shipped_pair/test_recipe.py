"""The recipe with tiny models: every stage, from text to a pair that loads and generates; the training log; DIR/pair."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.shipped_pair import corpus
from decoding.shipped_pair import recipe as recipe_module
from decoding.shipped_pair.recipe import (
    Recipe,
    digest,
    export,
    main,
    run,
    sample_text,
    smoke_recipe,
    train_target,
    training_stream,
)
from gemma4.checkpoints.directories import CheckpointError
from gemma4.config import interleave
from gemma4.fast.linear import FlatLinear
from gemma4.training import windows
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target


def shallow(recipe: Recipe) -> Recipe:
    """The same with four target layers, two drafter layers and two draft steps, because compilation takes nearly all the time.

    This layout needs that many: each type has a layer that owns K/V and one that shares them.
    """
    target = dataclasses.replace(recipe.target, layer_types=interleave(1, 4), num_kv_shared_layers=2)
    text = dataclasses.replace(recipe.drafter.text, layer_types=interleave(1, 2), num_kv_shared_layers=2)
    return recipe._replace(target=target, drafter=dataclasses.replace(recipe.drafter, text=text), unroll=2)


@pytest.mark.slow
def test_smoke_run_learns_resumes_and_ships(tmp_path):
    """Half of the target's training alone; then the whole recipe, which resumes there."""
    recipe, chapters = shallow(smoke_recipe()), 20
    text = corpus.king_james()
    text = corpus.Corpus(text.train[:chapters], text.held_out[:chapters])
    tokenizer = corpus.train_tokenizer(text.train, recipe.target.vocab_size)
    target = train_target(recipe._replace(target_steps=30), tokenizer, text, tmp_path)
    assert not any(isinstance(module, FlatLinear) for _, module in nnx.iter_modules(target)), "trained, a plain model"

    run(recipe, tmp_path, chapters)
    log = [json.loads(line) for line in (tmp_path / "pair" / "training_log.jsonl").read_text().splitlines()]
    assert [(entry["run"], entry["step"]) for entry in log] == [
        ("target", 30),
        ("target", 60),
        ("drafter-1", 20),
        ("drafter", 20),
    ]
    assert log[1]["held_out_bits_per_byte"] < log[0]["held_out_bits_per_byte"] < 8

    target, draft_model, tokenizer = decoding.load_pair(tmp_path / "pair" / "target", tmp_path / "pair" / "drafter")
    prompt = [corpus.BOS, *tokenizer.encode("In the beginning").ids]
    fast = decoding.generate(target, draft_model, prompt, max_new_tokens=24)
    slow = decoding.generate_autoregressive(target, prompt, max_new_tokens=24)
    np.testing.assert_array_equal(fast.tokens[0], slow.tokens[0])

    before = digest(tmp_path / "pair")
    run(recipe, tmp_path, chapters)  # all stages are finished: it trains and samples nothing, and exports the same pair
    assert digest(tmp_path / "pair") == before


def test_the_windows_are_those_that_the_shipped_pair_was_trained_on():
    """Step 0 of the target's training: the 16 windows start where they did for the shipped pair, for a text of this length."""
    text, length = corpus.Corpus(["In the beginning God created the heaven and the earth.\n"] * 300, []), 256
    tokenizer = corpus.train_tokenizer(text.train, 280)
    stream = np.concatenate(corpus.encode_chapters(tokenizer, text.train))
    begins = np.random.default_rng([0, 0]).integers(0, len(stream) - length, 16)
    ours = windows(training_stream(tokenizer, text), length, 16, corpus.BOS, seed=0)(0)
    np.testing.assert_array_equal(ours[:, 1:], stream[begins[:, None] + np.arange(length)])


def sample_a_little(out: Path) -> np.ndarray:
    recipe = smoke_recipe()._replace(sampled_rows=2, window=34)
    return sample_text(recipe, random_target(TINY["E2B"]), np.arange(64, dtype=np.int32), 0.0, out)


def test_text_that_was_saved_by_half_is_sampled_again(tmp_path, monkeypatch):
    save = np.save

    def interrupted(file, rows):
        save(file, rows[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", interrupted)
        sample_a_little(tmp_path)
    rows = sample_a_little(tmp_path)
    assert rows.shape == (2, 35)
    np.testing.assert_array_equal(np.load(tmp_path / "sampled_0.npy"), rows)


@pytest.mark.parametrize("left", [0, 200])
def test_a_damaged_file_of_sampled_text_is_named(left, tmp_path):
    sample_a_little(tmp_path)
    path = tmp_path / "sampled_0.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"sampled_0\.npy: damaged .*; remove it, and"):
        sample_a_little(tmp_path)


# -- DIR/pair ----------------------------------------------------------------------------------------------------------


def export_tiny(out: Path, held_out: str = "") -> None:
    """A pair of random weights, as if trained under `out`."""
    for name in ("target", "drafter-1", "drafter"):
        (out / name).mkdir(exist_ok=True)
        (out / name / "log.jsonl").write_text(f'{{"run": "{name}"}}\n')
    tokenizer = corpus.train_tokenizer(["In the beginning"], 270)
    text = corpus.Corpus([], [held_out])
    export(random_target(TINY["E2B"]), random_drafter(TINY_DRAFTERS["E2B"]), tokenizer, text, out)


def put_beside(pair: Path) -> None:
    (pair / "precious.txt").write_text("mine")


def change(pair: Path) -> None:
    (pair / "held_out.json").write_text("mine")


def empty_folder(pair: Path) -> None:
    (pair / "mine").mkdir()


def of_another(pair: Path) -> None:
    """Complete, but not exported to this folder."""
    (pair.parent / "exported.txt").unlink()


def file_instead(pair: Path) -> None:
    shutil.rmtree(pair)
    pair.write_text("mine")


@pytest.mark.parametrize("meddle", [put_beside, change, empty_folder, of_another, file_instead])
def test_a_pair_that_is_not_the_recipes_own_is_refused_before_training(meddle, tmp_path, monkeypatch, capsys):
    """One line, exit code 2; `export` refuses, too, in case it appears while training runs.  The folder stays as it is."""
    export_tiny(tmp_path)
    meddle(tmp_path / "pair")
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(recipe_module, "train_target", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as exit:
        main(["--smoke", "--out", str(tmp_path)])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"error: {tmp_path / 'pair'}: is not as this recipe left it" in error
    with pytest.raises(CheckpointError, match="is not as this recipe left it"):
        export_tiny(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == found


def test_the_recipes_own_pair_is_replaced_when_the_new_one_is_whole(tmp_path, monkeypatch):
    """So is an empty folder.  If writing fails, the old pair stays, and nothing else is left behind."""
    (tmp_path / "pair").mkdir()
    for held_out in ("first", "second"):
        export_tiny(tmp_path, held_out)
        assert json.loads((tmp_path / "pair" / "held_out.json").read_text()) == [held_out]
    before, names = digest(tmp_path / "pair"), set(tmp_path.iterdir())
    monkeypatch.setattr(recipe_module.drafter, "export_hf", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_tiny(tmp_path, "third")
    assert digest(tmp_path / "pair") == before and set(tmp_path.iterdir()) == names
