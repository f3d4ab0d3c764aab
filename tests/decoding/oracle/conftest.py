"""A dump of one case with the quicker stages, written once."""

from pathlib import Path

import pytest

from decoding.oracle import golden

CASE = "12B"
STAGES = ("rope", "forward", "prefill", "draft", "law", "accept", "emit")


@pytest.fixture(scope="session")
def dump_dir(tmp_path_factory) -> Path:
    """Not to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("oracle") / "dump"
    golden.dump(directory, [CASE], STAGES)
    return directory
