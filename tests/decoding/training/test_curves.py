"""The picture of a training: from JSON lines of several stages; none without matplotlib, and none by half."""

import importlib.util
import json

import pytest

from decoding.training import curves

LOG = "".join(
    json.dumps(entry) + "\n"
    for entry in (
        {"run": "target", "step": 10, "loss": 5.0, "seconds": 1.0, "held_out_bits_per_byte": 4.0},
        {"run": "target", "step": 20, "loss": 4.0, "seconds": 2.0, "held_out_bits_per_byte": 3.0},
        {"run": "drafter-1", "step": 10, "loss": 5.0, "seconds": 1.0},
        {"run": "drafter", "step": 10, "loss": 5.0, "seconds": 1.0, "held_out_acceptance": [0.7, 0.5]},
    )
)


def test_a_picture(tmp_path):
    assert curves.draw(LOG, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not curves.draw(LOG, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_an_older_picture_stays_if_drawing_fails(tmp_path, monkeypatch):
    (tmp_path / "curves.png").write_text("older")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curves.draw(LOG, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_text() == "older" and len(list(tmp_path.iterdir())) == 1
