"""DIR/pair: replaced as a whole, and only if it is ours."""

import shutil
from pathlib import Path

import pytest

from decoding.training.export import check_replaceable, digest, export
from gemma4 import CheckpointError


def export_tiny(out: Path, content: str = "ours") -> Path:
    def write(pair: Path) -> None:
        (pair / "target").mkdir()
        (pair / "target" / "weights").write_text(content)

    return export(write, out)


def put_beside(pair: Path) -> None:
    (pair / "precious.txt").write_text("mine")


def change(pair: Path) -> None:
    (pair / "target" / "weights").write_text("mine")


def empty_folder(pair: Path) -> None:
    (pair / "mine").mkdir()


def of_another(pair: Path) -> None:
    """Complete, but not exported to this folder."""
    (pair.parent / "exported.txt").unlink()


def file_instead(pair: Path) -> None:
    shutil.rmtree(pair)
    pair.write_text("mine")


@pytest.mark.parametrize("meddle", [put_beside, change, empty_folder, of_another, file_instead])
def test_what_is_not_ours_stays(meddle, tmp_path):
    """`export` refuses, too, in case it appears while training runs."""
    meddle(export_tiny(tmp_path))
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for attempt in (check_replaceable, export_tiny):
        with pytest.raises(CheckpointError, match="is not as this recipe left it"):
            attempt(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == found


def test_our_own_is_replaced_when_the_new_one_is_whole(tmp_path):
    """So is an empty folder.  If writing fails, the old one stays, and nothing else is left behind."""
    (tmp_path / "pair").mkdir()
    for content in ("first", "second"):
        assert (export_tiny(tmp_path, content) / "target" / "weights").read_text() == content
    before, names = digest(tmp_path / "pair"), set(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        export(lambda pair: 1 / 0, tmp_path)
    assert digest(tmp_path / "pair") == before and set(tmp_path.iterdir()) == names


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".pair.0123" / "new").mkdir(parents=True)
    export_tiny(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pair", "exported.txt"}
