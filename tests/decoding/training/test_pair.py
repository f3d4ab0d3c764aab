"""The stages: text that the target samples is saved whole, or named if it is damaged."""

from pathlib import Path

import numpy as np
import pytest

from decoding.training.pair import sample_text
from decoding.training.recipes import tiny
from tests.models import TINY, random_target


def sample_a_little(out: Path) -> np.ndarray:
    recipe = tiny()._replace(target=TINY["E2B"], sampled_rows=2, window=34)
    return sample_text(recipe, random_target(TINY["E2B"]), np.arange(64, dtype=np.int32), 0.0, out)


def test_text_that_was_saved_by_half_is_sampled_again(tmp_path, monkeypatch):
    save = np.save

    def interrupted(file, rows):
        save(file, rows[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", interrupted)
        sample_a_little(tmp_path)
    rows = sample_a_little(tmp_path)
    assert rows.shape == (2, 35)
    np.testing.assert_array_equal(np.load(tmp_path / "sampled_0.npy"), rows)


@pytest.mark.parametrize("left", [0, 200])
def test_a_damaged_file_of_sampled_text_is_named(left, tmp_path):
    sample_a_little(tmp_path)
    path = tmp_path / "sampled_0.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"sampled_0\.npy: damaged .*; remove it, and"):
        sample_a_little(tmp_path)
