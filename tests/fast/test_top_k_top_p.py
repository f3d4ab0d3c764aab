"""Top-k and top-p keep what a sort says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.fast.top_k_top_p import top_k_mask, top_p_mask

RNG = np.random.default_rng(0)
LOGITS = {
    "random": RNG.normal(0, 4, (8, 300)),
    "many equal": RNG.integers(-3, 4, (8, 300)),
    "some impossible": np.where(RNG.random((8, 300)) < 0.9, -np.inf, RNG.normal(0, 4, (8, 300))),
    "zeros of both signs": RNG.choice([-0.0, 0.0], (8, 300)),
    "far apart": RNG.choice([-1, 1], (8, 300)) * 10.0 ** RNG.uniform(-38, 38, (8, 300)),
}


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("top_k", [1, 7, 299])
def test_top_k(kind, top_k):
    logits = LOGITS[kind].astype(np.float32)
    lowest = -np.sort(-logits, axis=-1)[:, top_k - 1 : top_k]
    np.testing.assert_array_equal(jax.jit(top_k_mask, static_argnums=1)(logits, top_k), logits >= lowest)


@pytest.mark.parametrize("kind", ["random", "many equal", "some impossible"])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.999])
def test_top_p(kind, top_p):
    """Every token stays before which, in the order of probability and then of ids, less than top_p lies."""
    probs = np.asarray(jax.nn.softmax(LOGITS[kind].astype(np.float32), axis=-1))
    order = np.argsort(-probs, axis=-1, kind="stable")
    ranked = np.take_along_axis(probs.astype(np.float64), order, axis=-1)
    before = np.zeros_like(ranked)
    np.put_along_axis(before, order, np.cumsum(ranked, axis=-1) - ranked, axis=-1)
    kept = np.asarray(jax.jit(top_p_mask, static_argnums=1)(probs, top_p))
    certain = (np.abs(before - top_p) > 1e-5) & (probs > 0)
    assert certain.mean(where=probs > 0) > 0.9
    np.testing.assert_array_equal(kept[certain], (before < top_p)[certain])


@pytest.mark.parametrize(
    "probs, top_p, kept",
    [([0.25] * 4, 0.5, [1, 1, 0, 0]), ([0.25, 0.5, 0.25], 0.5, [0, 1, 0]), ([0.5, 0.0, 0.5], 1.0, [1, 0, 1])],
)
def test_top_p_that_is_reached_exactly(probs, top_p, kept):
    """Nothing more is needed then; of equals at the edge the lowest ids stay."""
    np.testing.assert_array_equal(top_p_mask(jnp.array(probs), top_p), np.array(kept, bool))


@pytest.mark.parametrize("cut, setting", [(top_k_mask, 7), (top_p_mask, 0.3)])
def test_by_itself_it_is_compiled_once(cut, setting, caplog):
    one, other = jax.nn.softmax(jnp.asarray(LOGITS["random"][:2]).reshape(2, 1, -1))  # a shape of this test alone
    with jax.log_compiles():
        jax.block_until_ready(cut(one, setting))
        assert "Compiling" in caplog.text
        caplog.clear()
        jax.block_until_ready(cut(other, setting))
    assert "Compiling" not in caplog.text
