"""Which form of attention runs where.  That both are right: `test_functional.py`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4 import forward, init_cache
from gemma4.fast import long_attention
from tests.models import TINY, WINDOW, random_target, random_tokens


@pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])  # full layers that share K/V, and none
def test_a_long_cache_gives_the_same_logits(layout, monkeypatch):
    """In chunks, over a full layer's cache that is several blocks long and half empty; sliding layers' rings are short."""
    config, time = TINY[layout], 2 * WINDOW + 3
    target, tokens = random_target(config), random_tokens(2, time)
    expected = forward(target, tokens).logits
    calls = []

    def counted(query, key, value, seen):
        calls.append(key.shape[2])
        return attend_in_blocks(query, key, value, seen, block=7)

    attend_in_blocks = long_attention.attend_in_blocks
    ring = WINDOW + 5
    monkeypatch.setattr(long_attention, "LONG", ring)
    monkeypatch.setattr("gemma4.layers.attend_in_blocks", counted)
    cache, logits = init_cache(config, 2, 2 * time, chunk=5), []
    step = jax.jit(lambda *args: target(*args))  # traced here, with what was set
    for first in range(0, time, 5):
        hidden, cache = step(jnp.asarray(tokens[:, first : first + 5]), cache)
        logits.append(target.logits(hidden))
    # Chunks alone, read at once, differ by 2.2e-5 in E2B.
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), expected, atol=2e-4 * np.abs(expected).max())
    full_layers = sum(not config.is_sliding(layer) for layer in range(config.num_hidden_layers))
    assert calls == [2 * time] * full_layers * 2  # a chunk, and the shorter last one


@pytest.mark.parametrize("platform, block", [("cpu", long_attention.BLOCK), ("tpu", long_attention.LARGE_BLOCK)])
def test_blocks_are_larger_off_the_cpu(platform, block, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    of_shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    slots = 2 * long_attention.LARGE_BLOCK
    kv, seen = of_shape(1, 1, slots, 4), jax.ShapeDtypeStruct((1, 1, slots), bool)
    program = str(
        jax.make_jaxpr(lambda *args: long_attention.attend_in_blocks(*args))(of_shape(1, 1, 2, 4), kv, kv, seen)
    )
    assert set(re.findall(r"slice_sizes=\(1, 1, (\d+), 4\)", program)) == {str(block)}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_only_a_long_cache_is_read_in_blocks(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    slots = long_attention.LONG + 1
    assert long_attention.is_long(1, slots)
    assert not long_attention.is_long(1, slots - 1)
    assert not long_attention.is_long(slots, slots)  # a whole text without a cache: may need a gradient
