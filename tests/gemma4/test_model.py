"""Decoder layers and the whole forward pass against their NumPy twins, in float32, for all five layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma4
from gemma4 import init_cache
from gemma4.cache import LayerKV
from tests.gemma4 import twins
from tests.gemma4.test_layers import TIME, inputs_of, states
from tests.models import TINY, random_target, random_tokens

# A dense layer, layers with per-layer embeddings (one owns its K/V, one shares), a layer with experts.
LAYERS = {"dense": ("12B", 2), "PLE": ("E2B", 0), "PLE, shared K/V": ("E2B", 4), "experts": ("26B-A4B", 0)}


@pytest.mark.parametrize("case", LAYERS)
def test_decoder_layer(case):
    layout, index = LAYERS[case]
    target = random_target(TINY[layout])
    config, layer = target.config, target.layers[index]
    rng, x = np.random.default_rng(3), states(config)
    per_layer_input = kv = given = None
    if config.hidden_size_per_layer_input:
        per_layer_input = rng.normal(0, 1, (1, TIME, config.hidden_size_per_layer_input)).astype(np.float32)
    if config.kv_source[index] != index:
        shape = (1, TIME, config.kv_heads(index), config.layer_head_dim(index))
        key, value = (rng.normal(0, 1, shape).astype(np.float32) for _ in range(2))
        kv, given = LayerKV.of(jnp.asarray(key), jnp.asarray(value)), (key[0], value[0])
    run = jax.jit(lambda layer, *args: layer(*args))
    ours, _ = run(layer, jnp.asarray(x), per_layer_input, kv, inputs_of(config, index, TIME))
    ple = None if per_layer_input is None else per_layer_input[0].astype(float)
    twin, _ = twins.decoder_layer(config, index, twins.weights_of(layer), x[0].astype(float), ple, given)
    np.testing.assert_allclose(ours[0], twin, rtol=0, atol=5e-6 * np.abs(twin).max())


@pytest.mark.parametrize("layout", TINY)
def test_forward(layout):
    """Past two windows: which layer reads whose K/V, the soft cap, the tied head."""
    target = random_target(TINY[layout])
    tokens = random_tokens(2, TIME)
    out = gemma4.forward(target, tokens)
    weights = twins.weights_of(target)
    for row in range(2):
        hidden, logits = twins.hidden_and_logits(target.config, weights, tokens[row].tolist())
        np.testing.assert_allclose(out.hidden[row], hidden, rtol=0, atol=1e-5 * np.abs(hidden).max())
        np.testing.assert_allclose(out.logits[row], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("layout", ["E2B", "12B"])
def test_hidden_at_is_one_of_the_hidden_states(layout):
    target = random_target(TINY[layout])
    tokens = jnp.asarray(random_tokens(3, TIME))
    cache = init_cache(target.config, batch=3, capacity=64, chunk=TIME)
    index = jnp.array([0, TIME - 1, 7])
    hidden, after = jax.jit(type(target).__call__)(target, tokens, cache)
    at, after_at = jax.jit(type(target).hidden_at)(target, tokens, cache, index)
    np.testing.assert_allclose(at, hidden[jnp.arange(3), index], rtol=0, atol=1e-6 * np.abs(hidden).max())
    assert after_at.length.tolist() == after.length.tolist() == [TIME] * 3


def test_layers_that_share_kv_have_none_in_the_cache():
    target = random_target(TINY["E2B"])
    out = gemma4.forward(target, random_tokens(1, 3), init_cache(target.config, capacity=16, chunk=4))
    owners = [i for i, kv in enumerate(out.cache.layers) if kv is not None]
    assert owners == [i for i, source in enumerate(target.config.kv_source) if source == i] == [0, 1, 2]
