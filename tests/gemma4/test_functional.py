"""Each formula of `gemma4.functional` against NumPy in float64, written with loops or from the definition.

Tolerances are relative to the largest value in play: float32 has 24 bits (6e-8), bfloat16 8 bits (4e-3).
"""

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemma4.functional import (
    apply_rope,
    argmax,
    attention,
    attention_mask,
    attention_scores,
    gelu,
    inverse_frequencies,
    rms_norm,
    rope_cos_sin,
    scaled,
    select_position,
    softcap,
)
from tests import numpy_reference as reference
from tests.numpy_reference import assert_close, normal

F32 = 5e-7
POSITIONS = (0, 1, 777, 131_071)  # 131071: the last position of E2B's context


# -- norm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(scale, weighted):
    x, weight = normal(2, 3, 40, scale=scale), normal(40, seed=1) if weighted else None
    ours = rms_norm(jnp.asarray(x), None if weight is None else jnp.asarray(weight), 1e-6)
    assert_close(ours, reference.rms_norm(x, weight, 1e-6), F32)


def test_rms_norm_computes_in_float32():
    """In float16 300^2 would overflow, and in bfloat16 a sum of 4096 squares would not grow past 512 or so."""
    for dtype, tolerance in ((np.float16, 1e-3), (ml_dtypes.bfloat16, 5e-3)):
        x, weight = normal(2, 4096, scale=300).astype(dtype), normal(4096, seed=1).astype(dtype)
        ours = rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-6)
        assert ours.dtype == dtype
        assert_close(ours, reference.rms_norm(x.astype(np.float64), weight.astype(np.float64), 1e-6), tolerance)


def test_rms_norm_of_zeros_is_zero():
    assert not np.asarray(rms_norm(jnp.zeros((1, 8)), None, 1e-6)).any()


# -- RoPE --------------------------------------------------------------------------------------------------------------

ROPES = [(256, 10_000.0, 1.0), (512, 1_000_000.0, 0.25), (16, 1_000_000.0, 0.25)]  # sliding, full, tiny full


@pytest.mark.parametrize(("head_dim", "theta", "factor"), ROPES)
def test_inverse_frequencies(head_dim, theta, factor):
    ours, expected = inverse_frequencies(head_dim, theta, factor), reference.rope_frequencies(head_dim, theta, factor)
    np.testing.assert_allclose(ours, expected, rtol=2**-24)
    if head_dim == 512:
        assert np.count_nonzero(ours) == 64, "64 of 256 pairs rotate"


@pytest.mark.parametrize(("head_dim", "theta", "factor"), ROPES)
@pytest.mark.parametrize("position", POSITIONS)
def test_rope_cos_sin(position, head_dim, theta, factor):
    cos, sin = rope_cos_sin(jnp.full((1, 1), position), head_dim, theta, factor)
    angles = position * np.array(reference.rope_frequencies(head_dim, theta, factor))
    # In float32 the frequency and its product with the position are each rounded: 2^-24 of the angle, twice.  That is
    # 0.016 radians for the fastest pair at the end of the context, and every float32 implementation has it.
    for ours, expected in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert (np.abs(np.asarray(ours)[0, 0] - expected) <= 2**-23 * angles + 3e-7).all()


@pytest.mark.parametrize("position", POSITIONS)
def test_apply_rope(position):
    x = normal(1, 1, 3, 16)
    cos_sin = rope_cos_sin(jnp.full((1, 1), position), 16, 1e6, 0.5)
    cos, sin = (np.asarray(a, np.float64)[0, 0] for a in cos_sin)
    expected = np.empty(x.shape)
    for head in range(3):
        for i in range(8):  # pair i is (x[i], x[i + 8]): the real and the imaginary part of a number that rotates
            rotated = complex(x[0, 0, head, i], x[0, 0, head, i + 8]) * complex(cos[i], sin[i])
            expected[0, 0, head, i], expected[0, 0, head, i + 8] = rotated.real, rotated.imag
    ours = apply_rope(jnp.asarray(x), cos_sin)
    assert_close(ours, expected, F32)
    np.testing.assert_array_equal(np.asarray(ours)[..., 4:8], x[..., 4:8])  # pairs with frequency 0
    assert position == 0 or not np.allclose(np.asarray(ours)[..., :4], x[..., :4])


def test_scores_depend_on_distance_only():
    query, key = jnp.asarray(normal(1, 1, 1, 16)), jnp.asarray(normal(1, 1, 1, 16, seed=1))

    def at(x, position):
        return apply_rope(x, rope_cos_sin(jnp.full((1, 1), position), 16, 1e4))

    scores = [float((at(query, 5 + shift) * at(key, shift)).sum()) for shift in (0, 3, 100)]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-4)
    assert abs(float((at(query, 0) * at(key, 5)).sum()) - scores[0]) > 1e-2, "the sign of the distance matters"


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 8])
def test_attention_mask_is_a_set_of_positions(window):
    """The keys from query - window + 1 to query.  Slots are in any order; negative positions are empty slots."""
    keys = np.random.default_rng(0).permutation(np.arange(-4, 24))
    queries = [0, 6, 7, 8, 9, 19]  # about a window of 8: w-2, w-1, w, w+1, 2w+3
    mask = np.asarray(attention_mask(jnp.asarray([queries, queries]), jnp.asarray([keys, keys[::-1]]), window))
    for row, slots in enumerate((keys, keys[::-1])):
        for i, query in enumerate(queries):
            oldest = 0 if window is None else max(0, query - window + 1)
            assert set(slots[mask[row, i]]) == set(range(oldest, query + 1))


@pytest.mark.parametrize("count", [7, 8, 9])
def test_the_window_includes_the_query(count):
    """w-1, w and w+1 tokens: only the last of w+1 no longer sees the first key."""
    positions = jnp.arange(count)[None]
    mask = np.asarray(attention_mask(positions, positions, 8))[0]
    assert mask.sum(axis=1).tolist() == [min(t + 1, 8) for t in range(count)]
    assert mask[-1, 0] == (count <= 8)


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_scores(kv_heads):
    query, key = normal(2, kv_heads, 3, 5, 8), normal(2, kv_heads, 9, 8, seed=1)
    expected = np.empty((2, kv_heads, 3, 5, 9))
    for b, k, g, t, s in np.ndindex(*expected.shape):
        expected[b, k, g, t, s] = query[b, k, g, t].astype(np.float64) @ key[b, k, s]
    assert_close(attention_scores(jnp.asarray(query), jnp.asarray(key)), expected, F32)


@pytest.mark.parametrize("time", [1, 2, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention(kv_heads, time):
    query, key, value = normal(2, time, 6, 8), normal(2, kv_heads, 9, 8, seed=1), normal(2, kv_heads, 9, 8, seed=2)
    mask = np.random.default_rng(0).random((2, time, 9)) < 0.4
    mask[..., 3] = True  # each query sees something
    ours = attention(*map(jnp.asarray, (query, key, value, mask)))
    assert_close(ours, reference.masked_attention(query, key, value, mask), 2 * F32)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38, -3e38])
def test_masked_slots_may_hold_anything(poison):
    query, key, value = normal(1, 4, 2, 8), normal(1, 1, 9, 8, seed=1), normal(1, 1, 9, 8, seed=2)
    mask = np.zeros((1, 4, 9), bool)
    mask[..., [1, 4, 5]] = True
    clean = np.asarray(attention(*map(jnp.asarray, (query, key, value, mask))))
    for poisoned in (key, value):
        poisoned[:, :, ~mask[0, 0]] = poison
    np.testing.assert_array_equal(np.asarray(attention(*map(jnp.asarray, (query, key, value, mask)))), clean)


def test_a_query_that_sees_nothing_has_a_finite_result():
    query, kv = jnp.asarray(normal(1, 2, 2, 8)), jnp.asarray(normal(1, 1, 4, 8))
    for first in ([True, False, False, False], [False] * 4):
        mask = jnp.asarray([[first, [False] * 4]])
        assert np.isfinite(np.asarray(attention(query, kv, kv, mask))).all()


def test_attention_in_bfloat16_computes_the_softmax_in_float32():
    """Scores are rounded once (to 1/8 at 20), probabilities once; exponentials and their sum are not."""
    query, key, value = (normal(1, 40, 2, 64, seed=i, scale=s) for i, s in ((0, 0.5), (1, 0.5), (2, 1)))
    query, key, value = (x.astype(ml_dtypes.bfloat16) for x in (query, key, value))
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    mask = np.tril(np.ones((1, 40, 40), bool))
    ours = attention(*map(jnp.asarray, (query, key, value, mask)))
    assert ours.dtype == jnp.bfloat16
    in_float64 = (x.astype(np.float64) for x in (query, key, value))
    assert_close(ours, reference.masked_attention(*in_float64, mask, round_score=ml_dtypes.bfloat16), 4e-3)


# -- pointwise ---------------------------------------------------------------------------------------------------------


def test_gelu_is_the_tanh_form():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    assert_close(gelu(jnp.asarray(x)), np.array(expected), F32)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    assert np.abs(np.asarray(gelu(jnp.asarray(x))) - exact).max() > 1e-4, "the test tells the two forms apart"


def test_gelu_and_scaled_round_once():
    """In bfloat16 JAX's own forms round the constants too: sqrt(2/pi) to 0.797, 2816^-0.5 by 0.1%."""
    x = np.linspace(-6, 6, 97).astype(ml_dtypes.bfloat16)
    exact = [
        0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.astype(float).tolist()
    ]
    np.testing.assert_allclose(np.asarray(gelu(jnp.asarray(x)), float), exact, rtol=2**-8, atol=1e-6)
    factor = 2816**-0.5
    np.testing.assert_array_equal(
        np.asarray(scaled(jnp.asarray(x), factor)),
        (x.astype(np.float32) * np.float32(factor)).astype(ml_dtypes.bfloat16),
    )


def test_softcap():
    x = np.linspace(-200, 200, 81, dtype=np.float32)
    expected = np.array([30 * math.tanh(v / 30) for v in x.tolist()])
    assert_close(softcap(jnp.asarray(x), 30.0), expected, F32)
    np.testing.assert_array_equal(np.asarray(softcap(jnp.asarray(x), None)), x)


# -- selection ---------------------------------------------------------------------------------------------------------


def test_argmax_is_the_lowest_index_among_equals():
    scores = np.random.default_rng(0).integers(0, 3, (4, 5, 7)).astype(np.float32)
    expected = [[row.index(max(row)) for row in rows] for rows in scores.tolist()]
    ours = argmax(jnp.asarray(scores))
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("rest", [(), (2, 3)])
def test_select_position(rest):
    values, index = normal(3, 5, *rest), np.array([4, 0, 2])
    expected = np.stack([values[row, index[row]] for row in range(3)])
    np.testing.assert_array_equal(select_position(jnp.asarray(values), jnp.asarray(index)), expected)
