"""Each formula of `gemma4.functional` against a twin in NumPy, float64, written with loops or from the definition.

Tolerances are relative to the largest value in play: float32 has 24 bits (6e-8), bfloat16 8 bits (4e-3).
"""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemma4.fast.long_attention import attention_in_blocks
from gemma4.functional import (
    apply_rope,
    attention,
    attention_mask,
    gelu,
    inverse_frequencies,
    rms_norm,
    rope_cos_sin,
    scaled,
    score,
    softcap,
)

F32 = 5e-7
POSITIONS = (0, 1, 777, 131_071)  # 131071: the last position of E2B's context


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, scale, shape).astype(np.float32)


def assert_close(ours, twin: np.ndarray, tolerance: float) -> None:
    ours = np.asarray(ours).astype(np.float64)
    assert ours.shape == twin.shape
    np.testing.assert_allclose(ours, twin, rtol=0, atol=tolerance * np.abs(twin).max())


# -- norm --------------------------------------------------------------------------------------------------------------


def rms_norm_twin(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    out = np.empty(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        row = x[index].astype(np.float64)
        out[index] = row / math.sqrt(sum(v * v for v in row) / len(row) + eps)
    return out if weight is None else out * weight.astype(np.float64)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(scale, weighted):
    x, weight = normal(2, 3, 40, scale=scale), normal(40, seed=1) if weighted else None
    ours = rms_norm(jnp.asarray(x), None if weight is None else jnp.asarray(weight), 1e-6)
    assert_close(ours, rms_norm_twin(x, weight, 1e-6), F32)


def test_rms_norm_works_in_float32_whatever_comes_in():
    """300^2 overflows float16, and a sum of 4096 squares in bfloat16 would stop growing at 512 or so."""
    for dtype, tolerance in ((np.float16, 1e-3), (ml_dtypes.bfloat16, 5e-3)):
        x, weight = normal(2, 4096, scale=300).astype(dtype), normal(4096, seed=1).astype(dtype)
        ours = rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-6)
        assert ours.dtype == dtype
        assert_close(ours, rms_norm_twin(x.astype(np.float64), weight.astype(np.float64), 1e-6), tolerance)


def test_rms_norm_of_zeros_is_zero():
    assert not np.asarray(rms_norm(jnp.zeros((1, 8)), None, 1e-6)).any()


# -- RoPE --------------------------------------------------------------------------------------------------------------


def frequencies_twin(head_dim: int, theta: float, factor: float) -> list[float]:
    pairs, turning = head_dim // 2, int(factor * (head_dim // 2))
    return [theta ** (-2 * i / head_dim) if i < turning else 0.0 for i in range(pairs)]


ROPES = [(256, 10_000.0, 1.0), (512, 1_000_000.0, 0.25), (16, 1_000_000.0, 0.25)]  # sliding, full, tiny full


@pytest.mark.parametrize(("head_dim", "theta", "factor"), ROPES)
def test_inverse_frequencies(head_dim, theta, factor):
    ours, twin = inverse_frequencies(head_dim, theta, factor), np.array(frequencies_twin(head_dim, theta, factor))
    np.testing.assert_allclose(ours, twin, rtol=2**-24)
    if head_dim == 512:
        assert np.count_nonzero(ours) == 64, "of 256 pairs, 64 turn"


@pytest.mark.parametrize(("head_dim", "theta", "factor"), ROPES)
@pytest.mark.parametrize("position", POSITIONS)
def test_rope_angles(position, head_dim, theta, factor):
    cos, sin = rope_cos_sin(jnp.full((1, 1), position), head_dim, theta, factor)
    angles = position * np.array(frequencies_twin(head_dim, theta, factor))
    # In float32 the frequency and its product with the position are each rounded: 2^-24 of the angle, twice.  That is
    # 0.016 radians for the fastest pair at the end of the context, and every float32 implementation has it.
    for ours, twin in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert (np.abs(np.asarray(ours)[0, 0] - twin) <= 2**-23 * angles + 3e-7).all()


@pytest.mark.parametrize("position", POSITIONS)
def test_rotate(position):
    x = normal(1, 1, 3, 16)
    angles = rope_cos_sin(jnp.full((1, 1), position), 16, 1e6, 0.5)
    cos, sin = (np.asarray(a, np.float64)[0, 0] for a in angles)
    twin = np.empty(x.shape)
    for head in range(3):
        for i in range(8):  # pair i is (x[i], x[i + 8]), as the real and imaginary part of a number that turns
            turned = complex(x[0, 0, head, i], x[0, 0, head, i + 8]) * complex(cos[i], sin[i])
            twin[0, 0, head, i], twin[0, 0, head, i + 8] = turned.real, turned.imag
    ours = apply_rope(jnp.asarray(x), angles)
    assert_close(ours, twin, F32)
    np.testing.assert_array_equal(np.asarray(ours)[..., 4:8], x[..., 4:8])  # pairs that stand still
    assert position == 0 or not np.allclose(np.asarray(ours)[..., :4], x[..., :4])


def test_scores_depend_on_distance_only():
    query, key = jnp.asarray(normal(1, 1, 1, 16)), jnp.asarray(normal(1, 1, 1, 16, seed=1))
    at = lambda x, position: apply_rope(x, rope_cos_sin(jnp.full((1, 1), position), 16, 1e4))
    scores = [float((at(query, 5 + shift) * at(key, shift)).sum()) for shift in (0, 3, 100)]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-4)
    assert abs(float((at(query, 0) * at(key, 5)).sum()) - scores[0]) > 1e-2, "the direction of time matters"


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 8])
def test_visible_is_a_set_of_positions(window):
    """Stated as positions: the keys from query - window + 1 to query.  Slots are in any order; negative ones are empty."""
    keys = np.random.default_rng(0).permutation(np.arange(-4, 24))
    queries = [0, 6, 7, 8, 9, 19]  # about a window of 8: w-2, w-1, w, w+1, 2w+3
    seen = np.asarray(attention_mask(jnp.asarray([queries, queries]), jnp.asarray([keys, keys[::-1]]), window))
    for row, slots in enumerate((keys, keys[::-1])):
        for i, query in enumerate(queries):
            oldest = 0 if window is None else max(0, query - window + 1)
            assert set(slots[seen[row, i]]) == set(range(oldest, query + 1))


@pytest.mark.parametrize("count", [7, 8, 9])
def test_window_counts_the_query_itself(count):
    """w-1, w and w+1 tokens: the first key leaves sight only with the last of them."""
    positions = jnp.arange(count)[None]
    seen = np.asarray(attention_mask(positions, positions, 8))[0]
    assert seen.sum(axis=1).tolist() == [min(t + 1, 8) for t in range(count)]
    assert seen[-1, 0] == (count <= 8)


# -- attention ---------------------------------------------------------------------------------------------------------

FORMS = {
    "at once": attention,
    "in one block": attention_in_blocks,
    "in blocks of 4": functools.partial(attention_in_blocks, block=4),  # of 9 keys, say: the last one overlaps
}
forms = pytest.mark.parametrize("attend", FORMS.values(), ids=FORMS.keys())


def attend_twin(query, key, value, seen, round_score=float) -> np.ndarray:
    batch, time, heads, _ = query.shape
    group = heads // key.shape[1]
    out = np.zeros(query.shape)
    for b, t, n in np.ndindex(batch, time, heads):
        slots = np.flatnonzero(seen[b, t])
        scores = [float(round_score(query[b, t, n].astype(np.float64) @ key[b, n // group, s])) for s in slots]
        weights = [math.exp(score - max(scores)) for score in scores]
        out[b, t, n] = sum(w * value[b, n // group, s].astype(np.float64) for w, s in zip(weights, slots, strict=True))
        out[b, t, n] /= sum(weights)
    return out


@forms
@pytest.mark.parametrize("time", [1, 2, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attend(attention, kv_heads, time):
    query, key, value = normal(2, time, 6, 8), normal(2, kv_heads, 9, 8, seed=1), normal(2, kv_heads, 9, 8, seed=2)
    seen = np.random.default_rng(0).random((2, time, 9)) < 0.4
    seen[..., 3] = True  # each query sees something
    ours = attention(*map(jnp.asarray, (query, key, value, seen)))
    assert_close(ours, attend_twin(query, key, value, seen), 2 * F32)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("queries, keys_first", [(2, True), (3, True), (15, True), (16, False)])
def test_the_form_of_a_product_of_queries_and_keys(queries, keys_first, platform, monkeypatch):
    """By how many queries share a KV head, of four heads each: up to 8, one by one on a CPU; fewer than 64, keys first."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    query, key = jnp.zeros((1, 1, 4, queries, 8)), jnp.zeros((1, 1, 9, 8))
    program = jax.make_jaxpr(lambda *args: score(*args))(query, key)  # traced anew for each platform
    products = [equation for equation in program.jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert len(products) == (8 if (queries, platform) == (2, "cpu") else 1)
    assert all((product.invars[0].aval.shape == key.shape) == keys_first for product in products)


@forms
@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38, -3e38])
def test_unseen_slots_may_hold_anything(attention, poison):
    query, key, value = normal(1, 4, 2, 8), normal(1, 1, 9, 8, seed=1), normal(1, 1, 9, 8, seed=2)
    seen = np.zeros((1, 4, 9), bool)
    seen[..., [1, 4, 5]] = True
    clean = np.asarray(attention(*map(jnp.asarray, (query, key, value, seen))))
    for victim in (key, value):
        victim[:, :, ~seen[0, 0]] = poison
    np.testing.assert_array_equal(np.asarray(attention(*map(jnp.asarray, (query, key, value, seen)))), clean)


@forms
def test_a_query_that_sees_nothing_gets_a_finite_result(attention):
    query, kv = jnp.asarray(normal(1, 2, 2, 8)), jnp.asarray(normal(1, 1, 4, 8))
    for sees in ([True, False, False, False], [False] * 4):
        seen = jnp.asarray([[sees, [False] * 4]])
        assert np.isfinite(np.asarray(attention(query, kv, kv, seen))).all()


@forms
def test_attend_in_bfloat16_takes_the_softmax_in_float32(attention):
    """Scores are rounded once (to 1/8 at 20), weights once; exponentials and their sum are not."""
    cast = lambda x: x.astype(ml_dtypes.bfloat16)
    query, key, value = (cast(normal(1, 40, 2, 64, seed=i, scale=s)) for i, s in ((0, 0.5), (1, 0.5), (2, 1)))
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    seen = np.tril(np.ones((1, 40, 40), bool))
    ours = attention(*map(jnp.asarray, (query, key, value, seen)))
    assert ours.dtype == jnp.bfloat16
    twin = attend_twin(*(x.astype(np.float64) for x in (query, key, value)), seen, round_score=ml_dtypes.bfloat16)
    assert_close(ours, twin, 4e-3)


# -- pointwise ---------------------------------------------------------------------------------------------------------


def test_gelu_is_the_tanh_form():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    twin = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    assert_close(gelu(jnp.asarray(x)), np.array(twin), F32)
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
    twin = np.array([30 * math.tanh(v / 30) for v in x.tolist()])
    assert_close(softcap(jnp.asarray(x), 30.0), twin, F32)
    np.testing.assert_array_equal(np.asarray(softcap(jnp.asarray(x), None)), x)
