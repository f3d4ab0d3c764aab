"""The recipe, in small: every stage from text to a pair that loads and generates; and the shape of its curve."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import decoding
from decoding.pairs import corpus
from decoding.pairs.recipe import Recipe, run, sample_text, smoke_recipe, train_target, training_stream
from gemma4.config import interleave
from gemma4.training import windows
from tests.tiny import TINY, random_target


def shallow(recipe: Recipe) -> Recipe:
    """The same with four target layers, two drafter layers and two draft steps: compiling takes nearly all the time.

    Fewer are none of this layout: each type needs a layer that owns K/V and one that shares it.
    """
    target = dataclasses.replace(recipe.target, layer_types=interleave(1, 4), num_kv_shared_layers=2)
    text = dataclasses.replace(recipe.drafter.text, layer_types=interleave(1, 2), num_kv_shared_layers=2)
    return recipe._replace(target=target, drafter=dataclasses.replace(recipe.drafter, text=text), unroll=2)


@pytest.mark.slow
def test_smoke_run_learns_resumes_and_ships(tmp_path):
    """Half of the target's training by itself; then the whole recipe, which goes on from there."""
    recipe, chapters = shallow(smoke_recipe()), 20
    text = corpus.king_james()
    text = corpus.Corpus(text.train[:chapters], text.held_out[:chapters])
    tokenizer = corpus.train_tokenizer(text.train, recipe.target.vocab_size)
    train_target(recipe._replace(target_steps=30), tokenizer, text, tmp_path)

    run(recipe, tmp_path, chapters)
    log = [json.loads(line) for line in (tmp_path / "pair" / "training_log.jsonl").read_text().splitlines()]
    assert [(entry["run"], entry["step"]) for entry in log] == [
        ("target", 30),
        ("target", 60),
        ("drafter-1", 20),
        ("drafter", 20),
    ]
    assert log[1]["held_out_bits_per_byte"] < log[0]["held_out_bits_per_byte"] < 8

    target, drafter, tokenizer = decoding.load_pair(tmp_path / "pair" / "target", tmp_path / "pair" / "drafter")
    prompt = [corpus.BOS, *tokenizer.encode("In the beginning").ids]
    fast = decoding.generate(target, drafter, prompt, max_new_tokens=24)
    slow = decoding.generate_autoregressive(target, prompt, max_new_tokens=24)
    np.testing.assert_array_equal(fast.tokens[0], slow.tokens[0])


def test_the_windows_are_those_that_the_shipped_pair_was_trained_on():
    """Step 0 of its target's training: where the 16 windows began when it was made, of a text of this length."""
    text, length = corpus.Corpus(["In the beginning God created the heaven and the earth.\n"] * 300, []), 256
    tokenizer = corpus.train_tokenizer(text.train, 280)
    stream = np.concatenate(corpus.encode_chapters(tokenizer, text.train))
    begins = np.random.default_rng([0, 0]).integers(0, len(stream) - length, 16)
    ours = windows(training_stream(tokenizer, text), length, 16, corpus.BOS, seed=0)(0)
    np.testing.assert_array_equal(ours[:, 1:], stream[begins[:, None] + np.arange(length)])


def sample_a_little(out: Path) -> np.ndarray:
    recipe = smoke_recipe()._replace(sampled_rows=2, window=34)
    return sample_text(recipe, random_target(TINY["E2B"]), np.arange(64, dtype=np.int32), 0.0, out)


def test_text_that_was_saved_by_half_is_sampled_anew(tmp_path, monkeypatch):
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
