"""`bench --heads` and `--experts`: the forms that are timed do the same, or nothing is reported."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from decoding.bench import experts, heads
from decoding.bench.experts import REPEATS, SCALE, time_experts
from decoding.bench.heads import time_heads
from decoding.bench.report import lines
from gemma4 import moe
from tests.models import TINY

SMALL = {"vocabulary": 512, "width": 16, "centroids": 32, "top_k": 4, "runs": 2}


def test_heads_are_timed():
    found = time_heads(**SMALL)
    assert all(value > 0 for value in found.values())
    assert found["dense over blocks"] == pytest.approx(found["dense seconds"] / found["blocks seconds"])
    assert 0.5 < found["rows whose best token was scored"] <= 1
    table = list(lines({"heads": found}))
    assert [row.split()[0] for row in table[2:5]] == ["dense", "gathered", "blocks"]


def lasting(*laps: float) -> SimpleNamespace:
    """In place of `time`: the laps take so many seconds."""
    ticks = iter([tick for seconds in laps for tick in (0.0, seconds)])
    return SimpleNamespace(perf_counter=lambda: next(ticks))


def test_heads_by_a_clock(monkeypatch):
    """Figures are of one choice, though a lap makes many; the dense head counts with the faster of its layouts."""
    monkeypatch.setattr(heads, "time", lasting(6.0, 4.0, 2.0, 1.0))
    found = time_heads(**SMALL | {"runs": 1})
    laps = [heads.CHOICES * found[f"{name} seconds"] for name in ("dense", "gathered", "blocks")]
    assert laps == [4.0, 2.0, 1.0] and (found["dense over gathered"], found["dense over blocks"]) == (2.0, 4.0)


def test_heads_that_differ_are_not_reported(monkeypatch):
    monkeypatch.setattr(
        heads, "in_blocks", lambda table, ordering, clusters: table.reshape(clusters, -1, table.shape[1])
    )
    with pytest.raises(RuntimeError, match="different tokens"):
        time_heads(**SMALL)


def test_heads_without_a_common_row_are_not_reported(monkeypatch):
    monkeypatch.setattr(
        heads.jax.lax, "top_k", lambda scores, k: (scores[..., :k], jnp.full((*scores.shape[:-1], k), -1))
    )
    monkeypatch.setattr(heads, "_timer", lambda *_: lambda: (1.0, np.zeros(heads.CHOICES, int)))
    with pytest.raises(RuntimeError, match="nothing was compared"):
        time_heads(**SMALL)


def test_experts_are_timed_in_both_forms(monkeypatch):
    """Each form is the one that it is said to be, at the widths that are said."""
    seen = []
    for name in ("dense", "chosen"):
        form = getattr(moe, name)

        def spy(*args, form=form, name=name):
            seen.append((name, *(array.shape for array in args)))
            return form(*args)

        monkeypatch.setattr(moe, name, spy)
    config = dataclasses.replace(TINY["26B-A4B"], hidden_size=32, moe_intermediate_size=16)
    found = time_experts(tokens=(1, 3), runs=2, config=config)
    assert all(entry[f"{name} seconds"] > 0 for entry in found for name in ("dense", "chosen"))
    width, hidden, experts, top_k = 32 // SCALE, 16 // SCALE, config.num_experts, config.top_k_experts
    weights = (experts, 2 * hidden, width), (experts, width, hidden)
    assert {
        (name, *weights, (1, tokens, width), (1, tokens, top_k), (1, tokens, top_k))
        for name in ("dense", "chosen")
        for tokens in (1, 3)
    } <= set(seen)
    assert len(list(lines({"experts": found}))) == 4


def test_experts_by_a_clock(monkeypatch):
    """Figures are of one run of the layer, though a lap repeats it; the table says how many times as fast the chosen are."""
    monkeypatch.setattr(experts, "time", lasting(0.006 * REPEATS, 0.002 * REPEATS))
    config = dataclasses.replace(TINY["26B-A4B"], hidden_size=32, moe_intermediate_size=16)
    found = time_experts(tokens=(5,), runs=1, config=config)
    assert found == [{"tokens": 5, "dense seconds": pytest.approx(0.006), "chosen seconds": pytest.approx(0.002)}]
    *_, row = lines({"experts": found})
    assert row.split() == ["5", "6", "2", "3.0", "x"]
