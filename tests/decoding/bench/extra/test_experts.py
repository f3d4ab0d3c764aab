"""`bench --experts`: both forms of a layer of experts, at the widths that the table names."""

import dataclasses

import pytest

from decoding.bench.extra import experts
from decoding.bench.extra.experts import REPEATS, SCALE, time_experts
from decoding.bench.report import lines
from tests.decoding.bench.extra.clock import lasting
from tests.models import TINY


def test_experts_are_timed_in_both_forms(monkeypatch):
    """Each name is that of its form, at the scaled widths."""
    seen = []
    for name, function in (("dense", "experts_dense"), ("chosen", "experts_sparse")):
        form = getattr(experts, function)

        def spy(*args, form=form, name=name):
            seen.append((name, *(array.shape for array in args)))
            return form(*args)

        monkeypatch.setattr(experts, function, spy)
    config = dataclasses.replace(TINY["26B-A4B"], hidden_size=32, moe_intermediate_size=16)
    found = time_experts(tokens=(1, 3), runs=2, config=config)
    assert all(entry[f"{name} seconds"] > 0 for entry in found for name in ("dense", "chosen"))
    width, hidden, number, top_k = 32 // SCALE, 16 // SCALE, config.num_experts, config.top_k_experts
    weights = (number, 2 * hidden, width), (number, width, hidden)
    assert {
        (name, *weights, (1, tokens, width), (1, tokens, top_k), (1, tokens, top_k))
        for name in ("dense", "chosen")
        for tokens in (1, 3)
    } <= set(seen)
    assert len(list(lines({"experts": found}))) == 4


def test_experts_by_a_clock(monkeypatch):
    """Figures are of one run of the layer, although a lap repeats it; the table has the speed-up of the chosen experts."""
    monkeypatch.setattr(experts, "time", lasting(0.006 * REPEATS, 0.002 * REPEATS))
    config = dataclasses.replace(TINY["26B-A4B"], hidden_size=32, moe_intermediate_size=16)
    found = time_experts(tokens=(5,), runs=1, config=config)
    assert found == [{"tokens": 5, "dense seconds": pytest.approx(0.006), "chosen seconds": pytest.approx(0.002)}]
    *_, row = lines({"experts": found})
    assert row.split() == ["5", "6", "2", "3.0", "x"]
