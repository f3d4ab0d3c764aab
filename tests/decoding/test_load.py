"""A pair from two directories, or from none: the shipped one; anything else is one clear error."""

import base64
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import decoding
import decoding.load
import drafter
import drafter.checkpoint
import gemma4
from gemma4.checkpoints.directories import CHECKSUMS
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


def test_no_tokenizer_is_none_and_a_warning(copied, caplog):
    load(copied)
    assert not caplog.records
    (copied / "target" / "tokenizer.json").unlink()
    assert load(copied).tokenizer is None
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and f"{copied / 'target'}: no tokenizer.json" in warning.getMessage()


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
    change_tokenizer(copied, lambda model: model["vocab"].update({"one": 320, "many": 400}), part="model")
    expected = (
        r"has 2 tokens that the target lacks, such as 'one' \(id 320\): expected ids below 320; use the tokenizer made"
    )
    refused(copied, expected)


def test_added_tokens_past_the_embeddings(copied, caplog):
    """transformers loads such a pair, too: the tokens are of no use before the embeddings are resized."""
    tokenizer = load(copied).tokenizer
    tokenizer.add_tokens(["<one>", "<too>", "<many>"])
    tokenizer.add_special_tokens(["<special>"])
    tokenizer.save(str(copied / "target" / "tokenizer.json"))
    pair = load(copied)
    (warning,) = caplog.records
    assert "4 added tokens have no embedding in the target (320 rows), such as '<one>' (id 320)" in warning.getMessage()
    prompt = pair.tokenizer.encode("In the <too>", add_special_tokens=False).ids
    assert 321 in prompt
    with pytest.raises(ValueError, match="321"):
        decoding.generate(pair.target, pair.draft_model, prompt, max_new_tokens=1)


# -- broken tokenizers -------------------------------------------------------------------------------------------------


def change_tokenizer(directory, change, part=None) -> None:
    file = directory / "target" / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content if part is None else content[part])
    file.write_text(json.dumps(content))


def refused(directory, message) -> None:
    file = directory / "target" / "tokenizer.json"
    with pytest.raises(gemma4.CheckpointError, match=message) as caught:
        load(directory)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(file))


def charsmap(content: bytes) -> dict:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}}


WORDS = {"unk_token": "[UNK]", "vocab": {"a": 0}}
BROKEN = {
    "a character map that is no map": (charsmap(b"garbage"), "cannot read it"),
    "an empty character map": (charsmap(b""), "cannot read it"),
    "a character map that leads outside": (
        charsmap(b"\x08\0\0\0" + b"\xff" * 8 + b"xyz\0"),
        r"cannot encode a text with it \(index out of bounds",
    ),
    "Unigram without unknown": (
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
        "cannot encode a text with it .*`unk_id` is missing",
    ),
    "WordPiece without unknown": (
        {"model": {"type": "WordPiece", **WORDS, "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}},
        r"cannot encode a text with it .*Missing \[UNK\]",
    ),
    "WordLevel without unknown": ({"model": {"type": "WordLevel", **WORDS}}, r"cannot encode .*Missing \[UNK\]"),
    "a decoder that strips too much": (
        {"decoder": {"type": "Strip", "content": "e", "start": 50, "stop": 50}},
        "cannot decode tokens with it",
    ),
    "an expression that is none": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        "cannot read it",
    ),
    "a merge of unknown tokens": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "cannot read it"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_tokenizer_is_one_line(copied, change, message, capfd):
    """Rust's own messages, which are pages, do not come out either."""
    change_tokenizer(copied, lambda content: content.update(change))
    refused(copied, message)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000])
def test_a_tokenizer_that_is_not_json(copied, content):
    (copied / "target" / "tokenizer.json").write_bytes(content)
    refused(copied, "cannot read it")


def test_a_tokenizer_that_is_a_directory(copied):
    file = copied / "target" / "tokenizer.json"
    file.unlink()
    file.mkdir()
    refused(copied, "expected a file, got a directory")


def test_an_interrupt_is_no_broken_tokenizer(pair_dir, monkeypatch):
    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding.load.Tokenizer, "from_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(pair_dir)


# -- writing -----------------------------------------------------------------------------------------------------------

PAIR_WRITERS = {"save": decoding.save_pair, "export": decoding.export_pair}
with_each_writer = pytest.mark.parametrize("write", PAIR_WRITERS.values(), ids=PAIR_WRITERS)


def assert_same_pair(ours: decoding.Pair, expected: decoding.Pair) -> None:
    assert ours.target.config == expected.target.config and ours.draft_model.config == expected.draft_model.config
    jax.tree.map(np.testing.assert_array_equal, ours[:2], expected[:2])
    assert json.loads(ours.tokenizer.to_str()) == json.loads(expected.tokenizer.to_str())


@with_each_writer
def test_what_is_written_is_a_pair(pair_dir, tmp_path, write):
    pair = load(pair_dir)
    write(pair, tmp_path / "new")
    assert_same_pair(load(tmp_path / "new"), pair)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["drafter", "target"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@with_each_writer
def test_files_beside_the_weights_are_copied_from_the_source(copied, tmp_path, write):
    settings = {"do_sample": True, "temperature": 0.7, "eos_token_id": [1, 7]}
    (copied / "target" / "generation_config.json").write_text(json.dumps(settings))
    (copied / "target" / "chat_template.jinja").write_text("a template")
    pair = load(copied)
    write(pair, tmp_path / "new", source=copied / "target")
    assert_same_pair(load(tmp_path / "new"), pair)
    assert decoding.load_sampling(tmp_path / "new" / "target").temperature == 0.7
    assert (tmp_path / "new" / "target" / "chat_template.jinja").read_text() == "a template"
    write(pair, tmp_path / "without")
    assert load(tmp_path / "without").target.config.eos_token_ids == (1, 7)
    assert not (tmp_path / "without" / "target" / "generation_config.json").exists()


def test_a_pair_without_tokenizer(pair_dir, tmp_path, caplog):
    decoding.save_pair(load(pair_dir)._replace(tokenizer=None), tmp_path / "new")
    assert load(tmp_path / "new").tokenizer is None
    assert len(caplog.records) == 1


def test_dtype_of_an_exported_pair(pair_dir, tmp_path):
    decoding.export_pair(load(pair_dir), tmp_path / "new", "bfloat16")
    for part in ("target", "drafter"):
        tensors = load_file(tmp_path / "new" / part / "model.safetensors")
        assert {array.dtype.name for name, array in tensors.items() if "ordering" not in name} == {"bfloat16"}


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_checksums_of_the_files_beside_the_weights(copied, tmp_path, name):
    (copied / "target" / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')
    decoding.save_pair(load(copied), tmp_path / "new", source=copied / "target")
    file = tmp_path / "new" / "target" / name
    assert {name, "config.json"} < json.loads((file.parent / CHECKSUMS).read_text()).keys()
    file.write_text(file.read_text().replace("5", "6", 1))
    with pytest.raises(gemma4.CheckpointError, match=f"{name}: not the file that was saved"):
        load(tmp_path / "new")


@with_each_writer
def test_both_or_neither(pair_dir, tmp_path, write, monkeypatch):
    def full(*args, **settings):
        raise OSError(28, "No space left on device")

    pair = load(pair_dir)
    monkeypatch.setattr(drafter.checkpoint, "write_config", full)
    with pytest.raises(gemma4.CheckpointError, match="new: cannot be written .*No space left"):
        write(pair, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(pair_dir, tmp_path):
    pair = load(pair_dir)
    twin = pair._replace(draft_model=drafter.fast.for_backend(pair.draft_model, "cpu"))
    with pytest.raises(gemma4.CheckpointError, match="^decoding.save_pair: expected a Drafter, got a FastDrafter"):
        decoding.save_pair(twin, tmp_path / "new")
    with pytest.raises(
        gemma4.CheckpointError, match="^decoding.export_pair: source: expected the directory .*, nothing$"
    ):
        decoding.export_pair(pair, tmp_path / "new", source=tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(gemma4.CheckpointError, match="file: exists and is not empty"):
        decoding.save_pair(pair, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
