"""What the machine can do, and the speed-up that follows from the times of the stages."""

import itertools
import math
import os
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.bench import cost, machine
from decoding.options import Options
from decoding.stages.draft import Draft

# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_machine(dtype, monkeypatch):
    monkeypatch.setattr(machine, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(machine, "SIDE", {jax.default_backend(): 32})
    found = machine.measure_machine(jnp.dtype(dtype))
    assert found.device == machine.device_name() != ""
    for figure in (found.bytes_per_second, found.flops_per_second, machine.peak_bytes(), machine.num_cores()):
        assert 0 < figure < float("inf")


def test_machine_by_a_clock(monkeypatch):
    """Copy and product take two seconds in their best lap: bytes moved and operations done in these."""
    laps = (9.0, 3.0, 2.0, *itertools.repeat(4.0, machine.LAPS - 2))
    ticks = itertools.accumulate(seconds for lap in 2 * laps for seconds in (1.0, lap))  # before a lap and in it
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(machine, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(machine, "SIDE", {jax.default_backend(): 32})
    found = machine.measure_machine(jnp.dtype("float32"))
    assert found[1:] == (2 * 2**16 / 2, 2 * 32**3 / 2)


def test_peak_memory_is_in_bytes():
    """Python with JAX takes more than 32 MB, and no more than there is.  As kibibytes the number would be far smaller."""
    if jax.default_backend() != "cpu":
        pytest.skip("a device reports its own peak")
    assert 2**25 < machine.peak_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_peak_memory_is_unknown_without_the_module_for_it(monkeypatch):
    """Windows has no module `resource`."""
    if jax.default_backend() != "cpu":
        pytest.skip("a device reports its own peak")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_bytes() is None


# -- the cost model ----------------------------------------------------------------------------------------------------


def test_tokens_per_round_is_the_papers_closed_form():
    for rate, gamma in itertools.product((0.0, 0.3, 0.8), (1, 4)):
        closed = (1 - rate ** (gamma + 1)) / (1 - rate)
        assert math.isclose(cost.tokens_per_round([rate**i for i in range(1, gamma + 1)]), closed)
    assert cost.tokens_per_round([1.0] * 4) == 5 and cost.tokens_per_round([]) == 1


def test_speed_up():
    times = cost.Times(autoregressive=10.0, draft=4.0, verify=11.0, accept=2.0)
    assert cost.speed_up(3.0, times) == pytest.approx(30 / 17)


@pytest.mark.parametrize("rate", [0.0, 0.6, 0.9, 1.0])
def test_simulated_acceptance(rate):
    """Over many rows the first i drafts are accepted with rate^i, within 4 sigma; the target's own token follows them."""
    rows, gamma, vocabulary = 20_000, 4, 7
    logits = jax.random.normal(jax.random.key(1), (rows, gamma + 1, vocabulary))
    drafted = Draft(jnp.zeros((rows, gamma), jnp.int32), jnp.zeros((rows, gamma, vocabulary)))
    num_accepted, next_token = map(np.asarray, cost.simulated(rate)(logits, drafted, Options(gamma), jax.random.key(0)))
    for i in range(1, gamma + 1):
        expected = rate**i
        sigma = math.sqrt(expected * (1 - expected) / rows)
        assert abs((num_accepted >= i).mean() - expected) <= 4 * sigma, f"the first {i}"
    choices = np.asarray(logits).argmax(axis=-1)
    np.testing.assert_array_equal(next_token, choices[np.arange(rows), num_accepted])
