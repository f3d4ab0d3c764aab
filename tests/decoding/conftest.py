"""A tiny pair on disk, written once."""

from pathlib import Path

import pytest

from tests.models import write_pair


@pytest.fixture(scope="session")
def pair_dir(tmp_path_factory) -> Path:
    """Holds `target` and `drafter`.  Not to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory)
    return directory
