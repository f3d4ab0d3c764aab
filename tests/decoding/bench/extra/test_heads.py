"""`bench --heads`: heads that choose different tokens are not reported."""

import jax.numpy as jnp
import numpy as np
import pytest

from decoding.bench.extra import heads
from decoding.bench.extra.heads import time_heads
from decoding.bench.report import lines
from tests.decoding.bench.extra.clock import lasting

SMALL = {"vocabulary": 512, "width": 16, "centroids": 32, "top_k": 4, "runs": 2}


def test_heads_are_timed():
    found = time_heads(**SMALL)
    assert all(value > 0 for value in found.values())
    assert found["dense over blocks"] == pytest.approx(found["dense seconds"] / found["blocks seconds"])
    assert 0.5 < found["rows whose best token was scored"] <= 1
    table = list(lines({"heads": found}))
    assert [row.split()[0] for row in table[2:5]] == ["dense", "gathered", "blocks"]


def test_heads_by_a_clock(monkeypatch):
    """Figures are of one choice, although a lap makes many."""
    monkeypatch.setattr(heads, "time", lasting(4.0, 2.0, 1.0))
    found = time_heads(**SMALL | {"runs": 1})
    laps = [heads.CHOICES * found[f"{name} seconds"] for name in ("dense", "gathered", "blocks")]
    assert laps == [4.0, 2.0, 1.0] and (found["dense over gathered"], found["dense over blocks"]) == (2.0, 4.0)


def test_heads_that_differ_are_not_reported(monkeypatch):
    monkeypatch.setattr(
        heads, "in_blocks", lambda table, ordering, clusters: table.reshape(clusters, -1, table.shape[1])
    )
    with pytest.raises(RuntimeError, match="different tokens"):
        time_heads(**SMALL)


def test_heads_without_a_common_choice_are_not_reported(monkeypatch):
    monkeypatch.setattr(
        heads.jax.lax, "top_k", lambda scores, k: (scores[..., :k], jnp.full((*scores.shape[:-1], k), -1))
    )
    monkeypatch.setattr(heads, "_timer", lambda *_: lambda: (1.0, np.zeros(heads.CHOICES, int)))
    with pytest.raises(RuntimeError, match="nothing was compared"):
        time_heads(**SMALL)


def test_heads_at_another_size(monkeypatch):
    """And that different choices are an error."""
    size = {"vocabulary": 256, "width": 16, "centroids": 32, "top_k": 8, "runs": 1}
    found = heads.time_heads(**size)
    assert all(0 < value < float("inf") for value in found.values())
    assert found["rows whose best token was scored"] > 0.9
    assert "dense" in "\n".join(lines({"heads": found}))
    monkeypatch.setattr(heads, "in_blocks", lambda table, *args: jnp.roll(table, 1, 0).reshape(32, -1, 16))
    with pytest.raises(RuntimeError, match="choose different tokens"):
        heads.time_heads(**size)
