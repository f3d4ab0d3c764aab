"""Directories that appear whole or not at all, and config.json files that are missing or damaged."""

import pytest

import gemma4
from gemma4 import CheckpointError
from gemma4.checkpoints import orbax, safetensors
from gemma4.checkpoints.directories import new_directory
from gemma4.checkpoints.safetensors import WEIGHTS
from tests.gemma4.checkpoints.common import assert_refused, assert_same, with_each_writer

# -- config.json -------------------------------------------------------------------------------------------------------


def test_no_directory(tmp_path):
    assert_refused(tmp_path / "none", str(tmp_path / "none"), "no such directory")


def test_a_file_in_place_of_a_directory(copy):
    assert_refused(copy / WEIGHTS, str(copy / WEIGHTS), "expected a directory, got a file")


def test_no_config(copy):
    (copy / "config.json").unlink()
    assert_refused(copy, str(copy / "config.json"), "missing")


@pytest.mark.parametrize("text", ["{", "", "\x00\xff"])
def test_config_is_not_json(copy, text):
    (copy / "config.json").write_text(text, encoding="latin1")
    assert_refused(copy, str(copy / "config.json"), "not valid JSON")


def test_config_is_nested_too_deep(copy):
    (copy / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    assert_refused(copy, str(copy / "config.json"), "not valid JSON")


def test_config_is_not_an_object(copy):
    (copy / "config.json").write_text("[]")
    assert_refused(copy, str(copy / "config.json"), "expected a JSON object, got a list")


# -- writing -----------------------------------------------------------------------------------------------------------


@with_each_writer
def test_nothing_is_overwritten(target, tmp_path, write):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(CheckpointError, match=f"{name}: exists and is not empty.*new directory"):
            write(target, tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


@with_each_writer
def test_an_empty_directory_and_new_parents_are_fine(target, tmp_path, write, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for directory in ("empty", tmp_path / "new" / "deep", "relative"):
        write(target, directory)
        assert_same(gemma4.load(directory), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new", "relative"], "no scratch directory left"


@pytest.mark.parametrize(
    ("write", "module", "inner"),
    [(gemma4.save, orbax, "save_orbax"), (gemma4.export_hf, safetensors, "write_safetensors")],
    ids=["orbax", "hf"],
)
def test_a_failed_write_leaves_nothing(target, tmp_path, write, module, inner, monkeypatch):
    def fail_midway(model, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(module, inner, fail_midway)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new/deep/er"):
        with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); make room there"):
            write(target, tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_new_parents_stay_if_something_else_is_in_them(tmp_path):
    with pytest.raises(CheckpointError, match="full"), new_directory(tmp_path / "a" / "b" / "new"):
        (tmp_path / "a" / "notes.txt").write_text("mine")
        raise OSError("full")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "notes.txt"]


def test_parents_half_made_are_removed(tmp_path):
    with pytest.raises(CheckpointError, match="too long"), new_directory(tmp_path / "a" / ("b" * 300) / "new"):
        pass
    assert not list(tmp_path.iterdir())
