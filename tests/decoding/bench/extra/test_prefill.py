"""The prefill that `bench` measures, and the one that it is compared with."""

import jax.numpy as jnp
import numpy as np

import decoding.stages.prefill
from decoding import fast, prefill
from decoding.bench.extra import prefill as bench_prefill
from decoding.bench.machine import Machine
from decoding.options import Options
from gemma4.fast.target import FastGemma4
from tests.models import TINY, random_target, small_subject


def test_figures_of_a_prefill(monkeypatch):
    """Medians of a prefill and of one with every layer, which alternate; the first of each compiles."""
    laps = iter([90.0, 90.0, 1.0, 6.0, 2.0, 7.0, 3.0, 5.0])
    monkeypatch.setattr(bench_prefill, "_seconds", lambda run: next(laps))
    found = bench_prefill.measure_prefill(small_subject(), 10, 3, Machine("none", 1.0, 1.0))
    assert (found["seconds"], found["every_layer_seconds"]) == (2.0, 6.0)
    assert (found["tokens_per_second"], found["gain"]) == (5.0, 3.0), "as many times as fast as with every layer"


def test_prefill_with_every_layer(monkeypatch):
    """The same hidden state, over two chunks and a half, although the twin's prefill leaves out layers that share K/V."""
    target = random_target(TINY["E2B"])
    for module in (bench_prefill, decoding.stages.prefill):
        monkeypatch.setattr(module, "MAX_CHUNK", 16)
    prompt = np.random.default_rng(0).integers(0, target.config.vocab_size, 40)
    ours = bench_prefill.read_with_every_layer(target, jnp.asarray(prompt[None]))
    expected = prefill(fast.for_backend(target), [prompt.tolist()], Options(0), max_new_tokens=1).hidden
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_both_prefills_run_the_twin(monkeypatch):
    """They differ in the layers that they leave out, and in nothing else."""
    seen = []
    watch = lambda name: lambda target, *args, **settings: seen.append((name, type(target))) or jnp.zeros(())
    monkeypatch.setattr(bench_prefill, "prefill", watch("prefill"))
    monkeypatch.setattr(bench_prefill, "read_with_every_layer", watch("every layer"))
    bench_prefill.measure_prefill(small_subject(), 10, 1, Machine("none", 1.0, 1.0))
    assert set(seen) == {("prefill", FastGemma4), ("every layer", FastGemma4)}
