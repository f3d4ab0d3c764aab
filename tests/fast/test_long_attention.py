"""Attention in blocks, against NumPy in float64, and where it runs.

Tolerances are relative to the largest value: float32 has 24 bits (6e-8), bfloat16 8 bits (4e-3).
"""

import functools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gemma4.fast
from gemma4 import forward, init_cache
from gemma4.fast import long_attention
from gemma4.fast.long_attention import attention_in_blocks, is_long
from tests import numpy_reference as reference
from tests.models import TINY, WINDOW, random_target, random_tokens
from tests.numpy_reference import assert_close, normal

F32 = 5e-7
FORMS = {
    "one block": attention_in_blocks,
    "blocks of 4": functools.partial(
        attention_in_blocks, block=4
    ),  # with 9 keys the last block overlaps the one before
    "blocks of 4, tpu": functools.partial(attention_in_blocks, backend="tpu", block=4),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@forms
@pytest.mark.parametrize("time", [1, 2, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention(form, kv_heads, time):
    query, key, value = normal(2, time, 6, 8), normal(2, kv_heads, 9, 8, seed=1), normal(2, kv_heads, 9, 8, seed=2)
    mask = np.random.default_rng(0).random((2, time, 9)) < 0.4
    mask[..., 3] = True  # each query sees something
    ours = form(*map(jnp.asarray, (query, key, value, mask)))
    assert_close(ours, reference.masked_attention(query, key, value, mask), 2 * F32)


@forms
@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38, -3e38])
def test_masked_slots_may_hold_anything(form, poison):
    query, key, value = normal(1, 4, 2, 8), normal(1, 1, 9, 8, seed=1), normal(1, 1, 9, 8, seed=2)
    mask = np.zeros((1, 4, 9), bool)
    mask[..., [1, 4, 5]] = True
    clean = np.asarray(form(*map(jnp.asarray, (query, key, value, mask))))
    for poisoned in (key, value):
        poisoned[:, :, ~mask[0, 0]] = poison
    np.testing.assert_array_equal(np.asarray(form(*map(jnp.asarray, (query, key, value, mask)))), clean)


@forms
def test_a_query_that_sees_nothing_has_a_finite_result(form):
    query, kv = jnp.asarray(normal(1, 2, 2, 8)), jnp.asarray(normal(1, 1, 4, 8))
    for first in ([True, False, False, False], [False] * 4):
        mask = jnp.asarray([[first, [False] * 4]])
        assert np.isfinite(np.asarray(form(query, kv, kv, mask))).all()


@forms
def test_bfloat16_computes_the_softmax_in_float32(form):
    """Scores are rounded once (to 1/8 at 20), weights once; exponentials and their sum are not."""
    query, key, value = (normal(1, 40, 2, 64, seed=i, scale=s) for i, s in ((0, 0.5), (1, 0.5), (2, 1)))
    query, key, value = (x.astype(ml_dtypes.bfloat16) for x in (query, key, value))
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    mask = np.tril(np.ones((1, 40, 40), bool))
    ours = form(*map(jnp.asarray, (query, key, value, mask)))
    assert ours.dtype == jnp.bfloat16
    in_float64 = (x.astype(np.float64) for x in (query, key, value))
    assert_close(ours, reference.masked_attention(*in_float64, mask, round_score=ml_dtypes.bfloat16), 4e-3)


# -- where it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])  # full layers that share K/V, and none
def test_a_long_cache_gives_the_same_logits(layout, monkeypatch):
    """In chunks, over a full layer's cache that is several blocks long and half empty; sliding layers' rings are short."""
    config, time = TINY[layout], 2 * WINDOW + 3
    target, tokens = random_target(config), random_tokens(2, time)
    twin = gemma4.fast.for_backend(target, "cpu")
    expected = forward(target, tokens).logits
    calls = []

    def counted(query, key, value, mask, backend):
        calls.append(key.shape[2])
        return attention_in_blocks(query, key, value, mask, backend, block=7)

    ring = WINDOW + 5
    monkeypatch.setattr(long_attention, "MIN_SLOTS", ring)
    monkeypatch.setattr("gemma4.fast.attention.attention_in_blocks", counted)
    cache, logits = init_cache(config, 2, 2 * time, chunk=5), []

    @jax.jit  # traced here, under the patches
    def step(target, tokens, cache):
        hidden, cache = target(tokens, cache)
        return target.logits(hidden), cache

    for first in range(0, time, 5):
        of_chunk, cache = step(twin, tokens[:, first : first + 5], cache)
        logits.append(of_chunk)
    # Chunks alone, without blocks, differ by 2.2e-5 in E2B.
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), expected, atol=2e-4 * np.abs(expected).max())
    full_layers = sum(not config.is_sliding(layer) for layer in range(config.num_hidden_layers))
    assert calls == [2 * time] * full_layers * 2  # a chunk, and the shorter last one


@pytest.mark.parametrize("backend, block", [("cpu", 1024), ("gpu", 8192), ("tpu", 8192)])
def test_blocks_are_larger_off_the_cpu(backend, block):
    slots = 2 * long_attention.LARGE_BLOCK
    query, kv = jax.ShapeDtypeStruct((1, 1, 2, 4), jnp.float32), jax.ShapeDtypeStruct((1, 1, slots, 4), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 1, slots), bool)
    program = str(jax.make_jaxpr(lambda *args: attention_in_blocks(*args, backend))(query, kv, kv, mask))
    assert set(re.findall(r"slice_sizes=\(1, 1, (\d+), 4\)", program)) == {str(block)}


def test_only_a_long_cache_is_read_in_blocks():
    slots = long_attention.MIN_SLOTS + 1
    assert is_long(1, slots)
    assert not is_long(1, slots - 1)
    assert not is_long(slots, slots)  # a whole text without a cache: may need a gradient
