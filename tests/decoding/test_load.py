"""A pair from two directories, or from none: the shipped one; anything else is one clear error."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import decoding.load
import drafter
import gemma4
from tests.models import SENTENCES, TINY, drafter_config, random_drafter


@pytest.fixture
def copied(pair_dir, tmp_path):
    return shutil.copytree(pair_dir, tmp_path / "pair")


def load(directory, **settings) -> decoding.Pair:
    return decoding.load_pair(directory / "target", directory / "drafter", **settings)


def test_pair_is_its_parts(pair_dir):
    target, draft_model, tokenizer = load(pair_dir)
    assert target.config == gemma4.load(pair_dir / "target").config
    table = drafter.load(pair_dir / "drafter").embed_tokens.weight[...]
    np.testing.assert_array_equal(draft_model.embed_tokens.weight[...], table)
    assert tokenizer.decode(tokenizer.encode(SENTENCES[1]).ids) == SENTENCES[1]


def test_dtype_is_that_of_both(pair_dir):
    target, draft_model, _ = load(pair_dir, dtype=jnp.bfloat16)
    assert target.embed_tokens.weight.dtype == draft_model.embed_tokens.weight.dtype == jnp.bfloat16


def test_without_arguments_the_shipped_pair(pair_dir, monkeypatch):
    monkeypatch.setattr(decoding.load, "SHIPPED", pair_dir)
    target, draft_model, tokenizer = decoding.load_pair()
    assert target.config == gemma4.load(pair_dir / "target").config
    assert draft_model.config == drafter.load(pair_dir / "drafter").config
    assert tokenizer is not None


def test_shipped_pair_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding.load, "SHIPPED", tmp_path / "absent")
    with pytest.raises(gemma4.CheckpointError, match="absent: the shipped pair is missing; install gemma4-mtp again"):
        decoding.load_pair()


def test_no_tokenizer_is_none(copied):
    (copied / "target" / "tokenizer.json").unlink()
    assert load(copied).tokenizer is None


@pytest.mark.parametrize("given", ["target", "drafter"])
def test_one_directory_alone(pair_dir, given):
    with pytest.raises(ValueError, match=f"only a {given} directory was given: give target and drafter"):
        decoding.load_pair(**{f"{given}_dir": pair_dir / given})


def test_drafter_of_another_target(pair_dir, tmp_path):
    drafter.export_hf(random_drafter(drafter_config(TINY["12B"], clustered=False)), tmp_path / "drafter")
    with pytest.raises(ValueError, match=r"do not fit \(vocab_size: drafter 64, target 320;"):
        decoding.load_pair(pair_dir / "target", tmp_path / "drafter")


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_a_tokenizer_that_truncates_or_pads_reads_all_and_no_more(copied, setting):
    tokenizer = load(copied).tokenizer
    ids = tokenizer.encode(SENTENCES[1]).ids
    tokenizer.enable_truncation(3) if setting == "truncation" else tokenizer.enable_padding(length=len(ids) + 5)
    assert tokenizer.encode(SENTENCES[1]).ids != ids
    tokenizer.save(str(copied / "target" / "tokenizer.json"))
    assert load(copied).tokenizer.encode(SENTENCES[1]).ids == ids


def test_tokenizer_that_cannot_be_read(copied):
    (copied / "target" / "tokenizer.json").write_text("{}")
    with pytest.raises(gemma4.CheckpointError, match=r"tokenizer\.json: `tokenizers` cannot read it"):
        load(copied)


def test_tokenizer_of_another_target(copied):
    tokenizer = load(copied).tokenizer
    tokenizer.add_tokens(["one", "too", "many"])
    tokenizer.save(str(copied / "target" / "tokenizer.json"))
    with pytest.raises(gemma4.CheckpointError, match=r"has 32\d tokens, but the target 320; use the tokenizer made"):
        load(copied)
