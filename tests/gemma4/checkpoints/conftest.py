"""A tiny target, in memory and as a Hugging Face directory."""

import shutil
from pathlib import Path

import pytest

import gemma4
from gemma4 import Gemma4
from tests.models import TINY, random_target


@pytest.fixture(scope="session")
def target() -> Gemma4:
    return random_target(TINY["E2B"])


@pytest.fixture(scope="session")
def exported(target, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("e2b") / "hf"
    gemma4.export_hf(target, directory)
    return directory


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """A Hugging Face directory that the test may spoil."""
    return shutil.copytree(exported, tmp_path / "copy")
