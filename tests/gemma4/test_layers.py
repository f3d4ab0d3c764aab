"""The parts of a decoder layer against NumPy in float64, with norms in 0.5 .. 1.5 as `random_target` draws them.

float32 within 2e-6 of the largest magnitude, or as a test states.
"""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from gemma4.cache import LayerKV
from gemma4.layers import MLP, Attention, AttentionInputs, Embedding, Linear, RMSNorm, no_tap, scoped
from tests import numpy_reference as reference
from tests.models import TINY, WINDOW, random_target
from tests.numpy_reference import assert_close, normal, weights_of

TOLERANCE = 2e-6
TIME, CHUNK = 2 * WINDOW + 4, 5
RING = WINDOW + CHUNK  # slots; a text of TIME tokens goes round the ring

call = jax.jit(lambda module, *args: module(*args))


# -- linear maps, norms, tables ----------------------------------------------------------------------------------------


def test_linear():
    """Output o is the sum over inputs i of x[i] * weight[i, o]; no bias."""
    module = Linear(5, 3, rngs=nnx.Rngs(0), dtype=jnp.float32)
    weight, x = np.asarray(module.weight[...], np.float64), normal(2, 4, 5)
    assert weight.shape == (5, 3)
    expected = np.zeros((2, 4, 3))
    for b, t, o in np.ndindex(*expected.shape):
        expected[b, t, o] = sum(float(x[b, t, i]) * weight[i, o] for i in range(5))
    assert_close(call(module, x), expected, TOLERANCE)
    assert not np.asarray(call(module, np.zeros_like(x))).any()


def test_linear_is_initialised_by_its_inputs():
    weight = np.asarray(Linear(400, 50, rngs=nnx.Rngs(0), dtype=jnp.float32).weight[...])
    assert abs(weight.std() * math.sqrt(400) - 1) < 0.02 and abs(weight.mean()) < 0.002


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_module(eps):
    module, weight = RMSNorm(7, eps, dtype=jnp.float32), np.random.default_rng(0).uniform(0.5, 1.5, 7)
    np.testing.assert_array_equal(module.weight[...], np.ones(7))
    module.weight[...] = jnp.asarray(weight, jnp.float32)
    x = normal(2, 3, 7)
    assert_close(call(module, x), reference.rms_norm(x, weight, eps), TOLERANCE)


@pytest.mark.parametrize(("scale", "factor"), [(None, math.sqrt(24)), (0.7, 0.7)])
def test_embedding_is_a_scaled_row_of_the_table(scale, factor):
    module = Embedding(11, 24, rngs=nnx.Rngs(0), dtype=jnp.float32, scale=scale)
    table, tokens = np.asarray(module.weight[...], np.float64), np.array([[3, 0, 10], [3, 3, 7]])
    expected = np.array([[table[token] * factor for token in row] for row in tokens])
    assert_close(call(module, tokens), expected, TOLERANCE)


@pytest.mark.parametrize("width", [1536, 5376])
def test_the_scale_of_an_embedding_is_rounded_first(width):
    """In bfloat16, as in transformers: sqrt(1536) = 39.19 is 39.25 there.  Then the product is rounded."""
    module = Embedding(4, width, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    table, tokens = np.asarray(module.weight[...]).astype(np.float32), np.array([[1, 3]])
    rounded_scale = np.float32(ml_dtypes.bfloat16(math.sqrt(width)))
    rounded_first = (table[tokens] * rounded_scale).astype(ml_dtypes.bfloat16)
    rounded_once = (table[tokens] * np.float32(math.sqrt(width))).astype(ml_dtypes.bfloat16)
    ours = np.asarray(call(module, tokens))
    np.testing.assert_array_equal(ours, rounded_first)
    assert (rounded_first != rounded_once).mean() > 0.1, "the test tells the two apart"


def test_mlp():
    module = MLP(6, 9, rngs=nnx.Rngs(0), dtype=jnp.float32)
    weights, x = weights_of(module), normal(2, 3, 6, scale=2)
    assert_close(call(module, x), reference.mlp(weights, x.astype(np.float64)), TOLERANCE)


# -- attention ---------------------------------------------------------------------------------------------------------

OWNERS = {
    "sliding, one KV head": ("E2B", 1),
    "full, a quarter of the pairs rotates": ("E2B", 2),
    "full, two KV heads": ("E4B", 1),
    "sliding, four KV heads": ("26B-A4B", 0),
    "full, V is the raw key": ("12B", 2),
    "full, V is the raw key, four KV heads": ("31B", 2),
}
owners = pytest.mark.parametrize(("layout", "layer"), OWNERS.values(), ids=OWNERS)


def attention_of(layout: str, layer: int) -> Attention:
    return random_target(TINY[layout]).layers[layer].self_attn


def inputs_by_hand(layout: str, layer: int, starts: list[int], time: int, held: list[list[int]]) -> AttentionInputs:
    """The inputs of `time` tokens from `starts` on.  held: for each row, the position in each slot; -1 if empty."""
    config = TINY[layout]
    frequencies = reference.rope_frequencies(*reference.rope_of(config, layer))
    angles = np.array([[[(start + t) * f for f in frequencies] for t in range(time)] for start in starts])
    window = reference.window_of(config, layer)
    mask = [
        [[position in reference.visible_keys(start + t, window) for position in slots] for t in range(time)]
        for start, slots in zip(starts, held, strict=True)
    ]
    cos_sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    return AttentionInputs(jnp.asarray(starts), cos_sin, jnp.asarray(mask))


def expected_attention(layout: str, layer: int, x: np.ndarray) -> tuple[np.ndarray, list]:
    """Outputs, [b, t, d], and for each row its keys and values, [t, k, h]."""
    weights, config = weights_of(attention_of(layout, layer)), TINY[layout]
    kvs = [reference.key_value(weights, config, layer, row.astype(np.float64)) for row in x]
    rows = zip(x, kvs, strict=True)
    return np.stack([reference.attention(weights, config, layer, row.astype(np.float64), *kv) for row, kv in rows]), kvs


@owners
def test_attention_without_a_cache(layout, layer):
    """Grouped queries, norms of queries and keys, a norm without weight for values, RoPE; keys and values by position."""
    module, x = attention_of(layout, layer), normal(2, TIME, TINY[layout].hidden_size)
    assert hasattr(module, "v_proj") != module.k_eq_v == TINY[layout].k_eq_v(layer)
    out, kv = call(module, x, None, inputs_by_hand(layout, layer, [0, 0], TIME, [list(range(TIME))] * 2))
    expected, kvs = expected_attention(layout, layer, x)
    assert_close(out, expected, TOLERANCE)
    for row, (key, value) in enumerate(kvs):
        assert_close(np.asarray(kv.key)[row].swapaxes(0, 1), key, TOLERANCE, "keys")
        assert_close(np.asarray(kv.value)[row].swapaxes(0, 1), value, TOLERANCE, "values")


@owners
def test_attention_with_a_cache(layout, layer):
    """In chunks, over a ring that wraps (sliding) or a slot for each position (full); all other slots are NaN.

    Row 0 keeps all tokens of a chunk; row 1 keeps three of five, and reads the others again.
    """
    module, config = attention_of(layout, layer), TINY[layout]
    x = normal(2, TIME, config.hidden_size)
    expected, _ = expected_attention(layout, layer, x)
    slots = RING if config.is_sliding(layer) else TIME
    empty = jnp.full((2, config.kv_heads(layer), slots, config.layer_head_dim(layer)), jnp.nan)
    kv, held, starts = LayerKV(empty, empty), [[-1] * slots for _ in range(2)], [0, 0]
    for _ in range(TIME // CHUNK):
        for row, start in enumerate(starts):
            for position in range(start, start + CHUNK):
                held[row][position % slots] = position
        chunk = np.stack([x[row, start : start + CHUNK] for row, start in enumerate(starts)])
        out, kv = call(module, chunk, kv, inputs_by_hand(layout, layer, starts, CHUNK, held))
        for row, start in enumerate(starts):
            assert_close(out[row], expected[row, start : start + CHUNK], TOLERANCE, f"row {row} from {start}")
        starts = [starts[0] + CHUNK, starts[1] + 3]
    assert kv.capacity == slots and (not config.is_sliding(layer) or starts[0] > slots)


@pytest.mark.parametrize(("layout", "layer"), [("E2B", 3), ("E2B", 4), ("E4B", 4)])
def test_a_layer_that_shares_kv(layout, layer):
    """It reads the K/V that it is given, has none of its own, and writes nothing: the same arrays come back."""
    module, config = attention_of(layout, layer), TINY[layout]
    assert not any(hasattr(module, name) for name in ("k_proj", "k_norm", "v_proj"))
    x, weights = normal(2, TIME, config.hidden_size), weights_of(module)
    shape = (2, config.kv_heads(layer), TIME, config.layer_head_dim(layer))
    key, value = normal(*shape, seed=1), normal(*shape, seed=2)
    given = LayerKV(jnp.asarray(key), jnp.asarray(value))
    inputs = inputs_by_hand(layout, layer, [0, 0], TIME, [list(range(TIME))] * 2)
    out, kv = call(module, x, given, inputs)
    for row in range(2):
        own = key[row].swapaxes(0, 1).astype(np.float64), value[row].swapaxes(0, 1).astype(np.float64)
        expected = reference.attention(weights, config, layer, x[row].astype(np.float64), *own)
        assert_close(out[row], expected, TOLERANCE, f"row {row}")
    np.testing.assert_array_equal(kv.key, key)
    np.testing.assert_array_equal(kv.value, value)


def test_attention_writes_into_the_caches_dtype():
    """A bfloat16 layer over a float32 cache: K/V are stored as float32, and its output stays bfloat16."""
    module = random_target(TINY["12B"], dtype=jnp.bfloat16).layers[0].self_attn
    x, empty = jnp.zeros((1, 2, 24), jnp.bfloat16), jnp.zeros((1, 2, 4, 8))
    inputs = inputs_by_hand("12B", 0, [0], 2, [[0, 1, -1, -1]])
    out, kv = jax.eval_shape(module, x, LayerKV(empty, empty), inputs)
    assert (out.dtype, kv.key.dtype, kv.value.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


def test_attention_over_a_cache_that_rounds():
    """A float32 layer over a bfloat16 cache: scores and values are rounded, the output is float32 (within 1e-2)."""
    module, x = attention_of("12B", 0), normal(1, 3, 24)
    empty = jnp.zeros((1, 2, WINDOW + 3, 8), jnp.bfloat16)
    inputs = inputs_by_hand("12B", 0, [0], 3, [[0, 1, 2, *[-1] * WINDOW]])
    out, kv = call(module, x, LayerKV(empty, empty), inputs)
    assert (out.dtype, kv.key.dtype) == (jnp.float32, jnp.bfloat16)
    assert_close(out, expected_attention("12B", 0, x)[0], 1e-2)


@pytest.mark.parametrize(
    ("layout", "layer", "expected"),
    [("12B", 0, ["query", "key", "value", "attention"]), ("E2B", 3, ["query", "attention"])],
)
def test_taps_of_attention(layout, layer, expected):
    """In this order.  A layer that shares K/V computes no key and no value."""
    module, config, seen = attention_of(layout, layer), TINY[layout], []
    x, shape = jnp.zeros((1, 2, 24)), (1, config.kv_heads(layer), 2, config.layer_head_dim(layer))
    kv = None if module.owns_kv else LayerKV(jnp.zeros(shape), jnp.zeros(shape))
    inputs = inputs_by_hand(layout, layer, [0], 2, [[0, 1]])
    jax.eval_shape(lambda: module(x, kv, inputs, lambda name, value: (seen.append(name), value)[1]))
    assert seen == expected


def test_names_of_taps():
    seen = []
    tap = scoped(lambda name, value: (seen.append(name), value)[1], "layers.3")
    assert tap("query", 5) == 5 and seen == ["layers.3.query"]
    assert scoped(no_tap, "layers.3") is no_tap, "costs nothing where nobody listens"
