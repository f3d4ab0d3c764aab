"""The recipe with tiny models: every stage, from text to a pair that loads and generates; the training log; DIR/pair."""

import json

import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.shipped_pair import recipe as recipe_module
from decoding.shipped_pair.corpus import king_james
from decoding.shipped_pair.recipe import main, run
from decoding.training.export import digest
from decoding.training.pair import corpus_tokenizer, train_target, training_stream
from decoding.training.recipes import small, tiny
from decoding.training.text import BOS, Corpus, encode, train_tokenizer
from gemma4.fast.linear import FlatLinear
from gemma4.training import windows


@pytest.mark.slow
def test_smoke_run_learns_resumes_and_ships(tmp_path):
    """Half of the target's training alone; then the whole recipe, which resumes there."""
    recipe, corpus = tiny()._replace(log_every=100), Corpus(*(chapters[:20] for chapters in king_james()))
    tokenizer = corpus_tokenizer(corpus, recipe.target.vocab_size, tmp_path)
    target = train_target(recipe._replace(target_steps=30), tokenizer, corpus, tmp_path)
    assert not any(isinstance(module, FlatLinear) for _, module in nnx.iter_modules(target)), "trained, a plain model"

    run(recipe, corpus, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "pair" / "training_log.jsonl").read_text().splitlines()]
    assert [(entry["run"], entry["step"]) for entry in log] == [
        ("target", 30),
        ("target", 60),
        ("drafter-1", 20),
        ("drafter", 20),
    ]
    assert log[1]["held_out_bits_per_byte"] < log[0]["held_out_bits_per_byte"] < 8

    target, draft_model, tokenizer = decoding.load_pair(tmp_path / "pair" / "target", tmp_path / "pair" / "drafter")
    prompt = [BOS, *tokenizer.encode("In the beginning").ids]
    fast = decoding.generate(target, draft_model, prompt, max_new_tokens=24)
    slow = decoding.generate_autoregressive(target, prompt, max_new_tokens=24)
    np.testing.assert_array_equal(fast.tokens[0], slow.tokens[0])

    before = digest(tmp_path / "pair")
    run(recipe, corpus, tmp_path)  # all stages are finished: it trains and samples nothing, and exports the same pair
    assert digest(tmp_path / "pair") == before


def test_the_windows_are_those_that_the_shipped_pair_was_trained_on():
    """Step 0 of the target's training: the 16 windows start where they did for the shipped pair, for a text of this length."""
    text, length = Corpus(["In the beginning God created the heaven and the earth.\n"] * 300, []), 256
    tokenizer = train_tokenizer(text.train, 280)
    stream = np.concatenate(encode(tokenizer, text.train))
    begins = np.random.default_rng([0, 0]).integers(0, len(stream) - length, 16)
    ours = windows(training_stream(small(), tokenizer, text), length, 16, BOS, seed=0)(0)
    np.testing.assert_array_equal(ours[:, 1:], stream[begins[:, None] + np.arange(length)])


def test_a_pair_that_is_not_the_recipes_own_is_refused_before_training(tmp_path, monkeypatch, capsys):
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "precious.txt").write_text("mine")
    monkeypatch.setattr(recipe_module, "train_target", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as exit:
        main(["--smoke", "--out", str(tmp_path)])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"error: {tmp_path / 'pair'}: is not as this recipe left it" in error
