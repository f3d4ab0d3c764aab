"""Folders that Orbax wrote: damage, and shapes that do not fit.  Round trips: `test_target.py`; checksums: `test_checksums.py`.

The folders here have no checksums, as earlier versions wrote them, so it is Orbax that finds the damage.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

import gemma4
from gemma4.checkpoints.directories import CHECKSUMS
from gemma4.checkpoints.orbax import FOLDER
from tests.gemma4.checkpoints.common import assert_refused


@pytest.fixture
def saved(target, tmp_path) -> Path:
    gemma4.save(target, tmp_path / "saved")
    (tmp_path / "saved" / CHECKSUMS).unlink()
    return tmp_path / "saved"


def test_an_empty_folder(saved):
    shutil.rmtree(saved / FOLDER)
    (saved / FOLDER).mkdir()
    assert_refused(saved, str(saved / FOLDER))


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d", "ocdbt.process_0"])
def test_a_missing_part(saved, name):
    part = saved / FOLDER / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    assert_refused(saved, str(saved / FOLDER))


def test_a_model_of_another_size(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    expected = "15 of another shape: layers.0.mlp.down_proj.weight is [40, 24], expected [48, 24]"
    assert_refused(saved, str(saved / FOLDER), expected)


def test_without_config(saved):
    (saved / "config.json").unlink()
    assert_refused(saved, str(saved / "config.json"), "missing")


def test_a_fifo_in_the_folder_is_not_waited_for(saved):
    file = saved / FOLDER / "array_metadatas" / "process_0"
    file.unlink()
    os.mkfifo(file)
    assert_refused(saved, "process_0: expected a file, got a FIFO; fetch it again")
