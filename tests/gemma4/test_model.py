"""The decoder layer and the whole decoder against NumPy in float64, on the five tiny layouts.

float32 within 5e-6 of the largest magnitude for one layer, 2e-5 for a whole decoder.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma4
from gemma4 import Gemma4, init_cache
from tests import numpy_reference as reference
from tests.gemma4.test_layers import inputs_by_hand
from tests.models import TINY, WINDOW, random_target, random_tokens
from tests.numpy_reference import assert_close, normal, weights_of

LAYER, DECODER = 5e-6, 2e-5
TIME, CHUNK = 2 * WINDOW + 4, 5

call = jax.jit(lambda module, *args: module(*args))

# Written down layer by layer: the layer whose K/V each layer reads.
KV_SOURCES = {"E2B": (0, 1, 2, 1, 2), "E4B": (0, 1, 2, 0, 2), "12B": (0, 1, 2), "26B-A4B": (0, 1), "31B": (0, 1, 2)}
layouts = pytest.mark.parametrize("layout", TINY)


# -- one layer ---------------------------------------------------------------------------------------------------------

LAYERS = {
    "dense, sliding": ("31B", 0),
    "dense, full": ("12B", 2),
    "per-layer input": ("E4B", 0),
    "per-layer input, shared K/V, double-wide MLP": ("E2B", 3),
    "experts, sliding": ("26B-A4B", 0),
    "experts, full": ("26B-A4B", 1),
}


@pytest.mark.parametrize(("layout", "layer"), LAYERS.values(), ids=LAYERS)
def test_decoder_layer(layout, layer):
    config, module = TINY[layout], random_target(TINY[layout]).layers[layer]
    x, ple, kv, shared = normal(1, TIME, config.hidden_size), None, None, None
    if config.hidden_size_per_layer_input:
        ple = normal(1, TIME, config.hidden_size_per_layer_input, seed=1)
    if KV_SOURCES[layout][layer] != layer:
        shape = (1, TIME, config.kv_heads(layer), config.layer_head_dim(layer))
        shared = normal(*shape, seed=2), normal(*shape, seed=3)
        kv = gemma4.LayerKV.of(*map(jnp.asarray, shared))
    inputs = inputs_by_hand(layout, layer, [0], TIME, [list(range(TIME))])
    out, read = call(module, x, ple, kv, inputs)

    weights, of_row = weights_of(module), lambda values: None if values is None else values[0].astype(np.float64)
    shared_row = None if shared is None else tuple(map(of_row, shared))
    expected, expected_kv = reference.decoder_layer(weights, config, layer, of_row(x), of_row(ple), shared_row)
    assert_close(out[0], expected, LAYER)
    for ours, theirs in zip(read, expected_kv, strict=True):
        assert_close(np.asarray(ours)[0].swapaxes(0, 1), theirs, LAYER, "the K/V that it read")


# -- the decoder -------------------------------------------------------------------------------------------------------


def expected_hidden(target: Gemma4, layout: str, tokens: np.ndarray) -> np.ndarray:
    weights = weights_of(target)
    rows = [reference.hidden_states(weights, target.config, row, KV_SOURCES[layout]) for row in tokens]
    return np.stack(rows)


@layouts
def test_hidden_states_and_logits(layout):
    """Without a cache: which layers read whose K/V, per-layer inputs by layer, the final norm, the tied head, the cap."""
    target, tokens = random_target(TINY[layout]), random_tokens(2, TIME)
    out, expected = gemma4.forward(target, tokens), expected_hidden(target, layout, tokens)
    assert_close(out.hidden, expected, DECODER, "hidden states")
    logits = np.stack([reference.logits(weights_of(target), target.config, row) for row in expected])
    assert_close(out.logits, logits, DECODER, "logits")
    assert out.logits.dtype == jnp.float32 and out.cache is None


@pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])
def test_hidden_states_with_a_cache(layout):
    """In chunks of five, over rings that wrap; a layer that shares K/V reads what its source has just written."""
    target, tokens = random_target(TINY[layout]), random_tokens(2, TIME)
    cache, hidden = init_cache(target.config, 2, TIME, chunk=CHUNK), []
    for start in range(0, TIME, CHUNK):
        chunk, cache = call(target, tokens[:, start : start + CHUNK], cache)
        hidden.append(chunk)
    assert_close(np.concatenate(hidden, axis=1), expected_hidden(target, layout, tokens), DECODER)
    assert cache.length.tolist() == [TIME, TIME]


@pytest.mark.parametrize("cap", [30.0, 2.0, None])
def test_the_cap_of_the_logits(cap):
    """Hidden states that give logits up to about 60: a cap of 30 bends them, and one of 2 flattens them."""
    config = dataclasses.replace(TINY["31B"], final_logit_softcapping=cap)
    target, hidden = random_target(config), normal(3, config.hidden_size, scale=8)
    logits = jax.jit(lambda target, hidden: target.logits(hidden))(target, hidden)
    assert_close(logits, reference.logits(weights_of(target), config, hidden.astype(np.float64)), 2e-6)
    assert (np.abs(logits).max() > 31) == (cap is None)


@layouts
def test_hidden_at(layout):
    """The hidden state at each row's own index: first, inner and last.  The cache is that of a forward (1e-6)."""
    target, tokens, index = random_target(TINY[layout]), random_tokens(3, TIME), np.array([0, WINDOW, TIME - 1])
    empty = init_cache(target.config, 3, TIME)
    both = jax.jit(lambda target, tokens, cache, index: (target(tokens, cache), target.hidden_at(tokens, cache, index)))
    (hidden, cache), (selected, cache_of_selected) = both(target, tokens, empty, index)
    assert_close(selected, np.stack([np.asarray(hidden)[row, index[row]] for row in range(3)]), 1e-6)
    jax.tree.map(lambda ours, theirs: assert_close(ours, np.asarray(theirs), 1e-6), cache_of_selected, cache)


def test_a_tap_sees_and_replaces_values():
    """What a tap returns is what the forward goes on with."""
    target, tokens, seen = random_target(TINY["E2B"]), random_tokens(1, 3), set()

    def tap(name, value):
        seen.add(name)
        return jnp.zeros_like(value) if name == "hidden" else value

    logits = jax.jit(lambda target, tokens: gemma4.forward(target, tokens, tap=tap).logits)(target, tokens)
    assert {"embedding", "per_layer_inputs", "layers.0.query", "layers.4.output", "hidden", "logits"} <= seen
    assert not {"layers.3.key", "layers.4.value"} & seen, "a layer that shares K/V computes none"
    assert not np.asarray(logits).any()
