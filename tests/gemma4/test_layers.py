"""Linear, embedding, MLP and attention against their NumPy twins (`twins.py`), in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma4.cache import LayerKV
from gemma4.config import FULL, SLIDING
from gemma4.functional import attention_mask, rope_cos_sin
from gemma4.layers import AttentionInputs, Embedding, Linear, no_tap, scoped
from tests.gemma4 import twins
from tests.models import TINY, WINDOW, random_target

TOLERANCE = 2e-6  # of the largest value
TIME = 2 * WINDOW + 3

# Layouts and layers: two KV heads without k_eq_v; k_eq_v with one KV head; with two of four.
OWNERS = [("E4B", 0), ("E4B", 2), ("12B", 0), ("12B", 2), ("26B-A4B", 1), ("31B", 2)]


def assert_close(ours, twin: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(ours), twin, rtol=0, atol=tolerance * np.abs(twin).max())


def states(config, batch: int = 1, time: int = TIME, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, batch, time]).normal(0, 1, (batch, time, config.hidden_size)).astype(np.float32)


def inputs_of(config, layer: int, time: int, capacity: int | None = None, start: int = 0) -> AttentionInputs:
    """Of tokens at positions start .. start + time - 1; keys by position, or in the slots of a cache."""
    kind = config.layer_types[layer]
    positions = start + jnp.arange(time)[None]
    keys = positions
    if capacity is not None:
        last = start + time - 1
        keys = jnp.array([[last - (last - slot) % capacity for slot in range(capacity)]])
    mask = attention_mask(positions, keys, config.sliding_window if kind == SLIDING else None)
    return AttentionInputs(jnp.array([start]), rope_cos_sin(positions, *config.rope(kind)), mask)


def run(module, *args):
    """Compiled, as in a model: operation by operation takes longer."""
    return jax.jit(lambda module, *args: module(*args))(module, *args)


def test_linear_multiplies_from_the_right():
    linear = Linear(3, 2, rngs=nnx.Rngs(0), dtype=jnp.float32)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    weight = np.asarray(linear.weight[...])
    by_hand = [[sum(row[i] * weight[i, j] for i in range(3)) for j in range(2)] for row in x]
    assert_close(linear(jnp.asarray(x)), np.array(by_hand))


def test_embedding_rounds_its_scale_to_the_tables_dtype():
    """sqrt(24) is 4.899; in bfloat16 it is 4.90625, and the product is rounded again."""
    embedding = Embedding(5, 24, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    expected = embedding.weight[...][3] * jnp.asarray(24**0.5, jnp.bfloat16)
    assert embedding(jnp.array([3]))[0].tolist() == expected.tolist()
    assert (embedding(jnp.array([3]))[0] != (embedding.weight[...][3].astype(jnp.float32) * 24**0.5)).any()


def test_embedding_scale_is_the_root_of_the_width_unless_given():
    for scale, expected in ((None, 24**0.5), (3.0, 3.0)):
        embedding = Embedding(5, 24, rngs=nnx.Rngs(0), dtype=jnp.float32, scale=scale)
        assert_close(
            embedding(jnp.array([[1, 4]]))[0], np.asarray(embedding.weight[...], np.float64)[[1, 4]] * expected
        )


@pytest.mark.parametrize("layout, layer", [("E2B", 0), ("E2B", 4)], ids=["narrow", "double-wide"])
def test_mlp(layout, layer):
    target = random_target(TINY[layout])
    x = states(target.config, time=3)
    module = target.layers[layer].mlp
    weights = twins.weights_of(module)
    assert weights["gate_proj.weight"].shape[1] == target.config.intermediate_size * (2 if layer == 4 else 1)
    assert_close(run(module, jnp.asarray(x))[0], np.array([twins.mlp(weights, token) for token in x[0].astype(float)]))


@pytest.mark.parametrize("layout, layer", OWNERS)
def test_attention_of_a_layer_that_owns_its_kv(layout, layer):
    """GQA grouping, q_norm and k_norm with weights, V's norm without, RoPE, the window, k_eq_v."""
    target = random_target(TINY[layout])
    config, module = target.config, target.layers[layer].self_attn
    assert module.k_eq_v == (layout not in ("E2B", "E4B") and config.layer_types[layer] == FULL)
    assert hasattr(module, "v_proj") != module.k_eq_v
    x, weights = states(config), twins.weights_of(module)
    out, kv = run(module, jnp.asarray(x), None, inputs_of(config, layer, TIME))
    keys, values = twins.key_value(config, layer, weights, x[0].astype(float))
    assert_close(kv.key[0].swapaxes(0, 1), keys)
    assert_close(kv.value[0].swapaxes(0, 1), values)
    assert_close(out[0], twins.attention(config, layer, weights, x[0].astype(float), keys, values))


def test_k_eq_v_takes_v_from_the_raw_key():
    """V has neither k_norm nor RoPE: another k_norm weight or position changes K and leaves V as it is."""
    target = random_target(TINY["12B"])
    config, module = target.config, target.layers[2].self_attn
    x = jnp.asarray(states(config, time=4))
    key, value = module._key_value(x, inputs_of(config, 2, 4), no_tap)
    raw = twins.weights_of(module)["k_proj.weight"]
    raw_heads = (np.asarray(x[0], float) @ raw).reshape(4, config.kv_heads(2), -1)
    expected = [[twins.norm(head, 1.0, config.rms_norm_eps) for head in token] for token in raw_heads]
    assert_close(value[0], np.array(expected))
    assert np.abs(np.asarray(key - value)).max() > 0.1


@pytest.mark.parametrize("layout, layer", [("E2B", 3), ("E2B", 4)], ids=["sliding", "full"])
def test_attention_of_a_layer_that_shares_kv(layout, layer):
    """It has no K/V weights, reads what it is given, and gives that back untouched."""
    target = random_target(TINY[layout])
    config, module = target.config, target.layers[layer].self_attn
    weights = twins.weights_of(module)
    assert not module.owns_kv and not any(name.startswith(("k_", "v_")) for name in weights)
    x, rng = states(config), np.random.default_rng(7)
    shape = (TIME, config.kv_heads(layer), config.layer_head_dim(layer))
    keys, values = (rng.normal(0, 1, shape).astype(np.float32) for _ in range(2))
    shared = LayerKV.of(jnp.asarray(keys[None]), jnp.asarray(values[None]))
    out, kv = run(module, jnp.asarray(x), shared, inputs_of(config, layer, TIME))
    assert_close(out[0], twins.attention(config, layer, weights, x[0].astype(float), keys, values))
    assert (kv.key == shared.key).all() and (kv.value == shared.value).all()


@pytest.mark.parametrize("layout, layer", [("E4B", 0), ("12B", 2)], ids=["ring", "full"])
def test_attention_over_a_cache_that_has_wrapped(layout, layer):
    """Token by token through a cache is the same as all at once; the sliding layer's ring has window + 2 slots."""
    target = random_target(TINY[layout])
    config, module = target.config, target.layers[layer].self_attn
    capacity = WINDOW + 2 if config.is_sliding(layer) else TIME
    x, weights = states(config), twins.weights_of(module)
    shape = (1, config.kv_heads(layer), capacity, config.layer_head_dim(layer))
    kv = LayerKV(jnp.full(shape, jnp.nan), jnp.full(shape, jnp.nan))  # what nothing has written shows if it is read
    step = jax.jit(lambda module, x, kv, inputs: module(x, kv, inputs))
    outs = []
    for position in range(TIME):
        inputs = inputs_of(config, layer, 1, capacity, start=position)
        out, kv = step(module, jnp.asarray(x[:, position : position + 1]), kv, inputs)
        outs.append(out[0, 0])
    keys, values = twins.key_value(config, layer, weights, x[0].astype(float))
    assert_close(np.array(outs), twins.attention(config, layer, weights, x[0].astype(float), keys, values))
    for position in range(TIME - capacity, TIME):
        assert_close(kv.key[0, :, position % capacity], keys[position])


def test_a_cache_of_another_dtype():
    """Scores and values are rounded to the cache's dtype; the output has the query's."""
    target = random_target(TINY["12B"])
    config, module = target.config, target.layers[0].self_attn
    shape = (1, config.kv_heads(0), WINDOW + 3, config.layer_head_dim(0))
    kv = LayerKV(jnp.zeros(shape, jnp.bfloat16), jnp.zeros(shape, jnp.bfloat16))
    x, weights = states(config, time=3), twins.weights_of(module)
    out, kv = run(module, jnp.asarray(x), kv, inputs_of(config, 0, 3, WINDOW + 3))
    assert (out.dtype, kv.key.dtype) == (jnp.float32, jnp.bfloat16)
    keys, values = twins.key_value(config, 0, weights, x[0].astype(float))
    assert_close(out[0], twins.attention(config, 0, weights, x[0].astype(float), keys, values), 1e-2)


def test_taps_are_scoped_and_return_the_value():
    shown = {}
    tap = scoped(lambda name, value: shown.setdefault(name, value), "layers.0")
    target = random_target(TINY["12B"])
    x = jnp.asarray(states(target.config, time=2))
    target.layers[0].self_attn(x, None, inputs_of(target.config, 0, 2), tap)
    assert list(shown) == [f"layers.0.{name}" for name in ("query", "key", "value", "attention")]
    assert scoped(no_tap, "layers.0") is no_tap
