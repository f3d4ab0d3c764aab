"""What `save` wrote is loaded as it was saved or refused in one line, whichever file has changed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemma4
from gemma4.checkpoints import directories
from gemma4.checkpoints.directories import CHECKSUMS, CheckpointError, check_checksums
from tests.gemma4.checkpoints.common import assert_refused, assert_same


@pytest.fixture
def saved(target, tmp_path) -> Path:
    gemma4.save(target, tmp_path / "saved")
    return tmp_path / "saved"


def each_file(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """The files with their content.  The test may spoil a file until the next one comes."""
    for file in [path for path in sorted(directory.rglob("*")) if path.is_file()]:
        whole = file.read_bytes()
        yield file, whole
        file.write_bytes(whole)


def flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def assert_refused_in_a_line(directory: Path, file: Path, *fragments: str) -> None:
    message = assert_refused(directory, str(file), *fragments)
    assert "\n" not in message and len(message) < 600 + len(str(file)), message


def test_one_changed_byte_in_each_file(saved):
    files = []
    for file, whole in each_file(saved):
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(flipped(whole, place))
            with pytest.raises(CheckpointError) as caught:
                gemma4.load(saved)
            # A changed name in the list of checksums is the name of a file that is missing.
            assert str(saved if file.name == CHECKSUMS else file) in str(caught.value)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        files.append(file.relative_to(saved).parts[0])
    assert set(files) == {CHECKSUMS, "config.json", "params"} and len(files) > 8
    gemma4.load(saved)


@pytest.mark.parametrize("name", ["config.json", CHECKSUMS])
def test_every_byte_of_the_small_files(saved, name):
    whole = (saved / name).read_bytes()
    for place in range(0, len(whole), 7):
        (saved / name).write_bytes(flipped(whole, place))
        with pytest.raises(CheckpointError):
            gemma4.load(saved)


def test_each_file_emptied(saved):
    for file, _ in each_file(saved):
        file.write_bytes(b"")
        assert_refused_in_a_line(saved, file)


def test_each_file_deleted(target, saved):
    for file, _ in each_file(saved):
        file.unlink()
        if file.name == CHECKSUMS:  # earlier versions wrote none
            assert_same(gemma4.load(saved), target)
        else:
            assert_refused_in_a_line(saved, file, f"{file}: missing; ")


def test_files_that_were_added_later_are_not_checked(target, saved):
    (saved / "tokenizer.json").write_text("{}")
    (saved / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert_same(gemma4.load(saved), target)


def test_a_file_that_the_user_has_changed(saved):
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 77}))
    assert_refused(saved, f"{file}: not the file that was saved", f"or remove {CHECKSUMS} if you have changed the file")
    (saved / CHECKSUMS).unlink()
    assert gemma4.load(saved).config.max_position_embeddings == 77


@pytest.mark.parametrize("name", ["../secret", "/secret", "params/../../secret"])
def test_no_file_outside_is_read(tmp_path, name):
    (tmp_path / CHECKSUMS).write_text(json.dumps({name: "0"}))
    with pytest.raises(CheckpointError, match="expected the SHA-256 of files of this directory"):
        check_checksums(tmp_path)


def test_a_file_that_cannot_be_read(saved, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(directories.hashlib, "file_digest", refuse)
    assert_refused(saved, "cannot be read (Permission denied); copy it again, or see its permissions")
