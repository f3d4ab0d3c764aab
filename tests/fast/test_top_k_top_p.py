"""Top-k and top-p by a threshold against the reference, which sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import fast
from decoding.fast.top_k_top_p import top_k_mask, top_p_mask
from decoding.sampling import REFERENCE

RNG = np.random.default_rng(0)
LOGITS = {
    "random": RNG.normal(0, 4, (8, 300)),
    "many equal": RNG.integers(-3, 4, (8, 300)),
    "some impossible": np.where(RNG.random((8, 300)) < 0.9, -np.inf, RNG.normal(0, 4, (8, 300))),
    "zeros of both signs": RNG.choice([-0.0, 0.0], (8, 300)),
    "far apart": RNG.choice([-1, 1], (8, 300)) * 10.0 ** RNG.uniform(-38, 38, (8, 300)),
    "17 tokens": RNG.normal(0, 4, (8, 17)),
    "a large vocabulary": RNG.normal(0, 4, (2, 20_000)),
}
PROBS = ("random", "many equal", "some impossible", "17 tokens", "a large vocabulary")


def test_they_are_the_kernels():
    assert (fast.KERNELS.top_k_mask, fast.KERNELS.top_p_mask) == (top_k_mask, top_p_mask)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("top_k", [1, 7, 299])
def test_top_k(kind, top_k):
    """The same tokens, and those of a sort."""
    logits = LOGITS[kind].astype(np.float32)
    top_k = min(top_k, logits.shape[-1])
    lowest = -np.sort(-logits, axis=-1)[:, top_k - 1 : top_k]
    kept = jax.jit(top_k_mask, static_argnums=1)(logits, top_k)
    np.testing.assert_array_equal(kept, logits >= lowest)
    np.testing.assert_array_equal(kept, jax.jit(REFERENCE.top_k_mask, static_argnums=1)(logits, top_k))


@pytest.mark.parametrize("kind", PROBS)
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.999])
def test_top_p(kind, top_p):
    """The same tokens as the reference and as a sum in float64, except where the mass before a token is within 1e-5 of top_p.

    There, rounding decides.
    """
    probs = np.asarray(jax.nn.softmax(LOGITS[kind].astype(np.float32), axis=-1))
    order = np.argsort(-probs, axis=-1, kind="stable")
    ranked = np.take_along_axis(probs.astype(np.float64), order, axis=-1)
    mass_before = np.zeros_like(ranked)
    np.put_along_axis(mass_before, order, np.cumsum(ranked, axis=-1) - ranked, axis=-1)
    kept = np.asarray(jax.jit(top_p_mask, static_argnums=1)(probs, top_p))
    certain = (np.abs(mass_before - top_p) > 1e-5) & (probs > 0)
    assert certain.mean(where=probs > 0) > 0.9
    np.testing.assert_array_equal(kept[certain], (mass_before < top_p)[certain])
    reference = np.asarray(jax.jit(REFERENCE.top_p_mask, static_argnums=1)(probs, top_p))
    np.testing.assert_array_equal(kept[certain], reference[certain])


@pytest.mark.parametrize(
    "probs, top_p, kept",
    [([0.25] * 4, 0.5, [1, 1, 0, 0]), ([0.25, 0.5, 0.25], 0.5, [0, 1, 0]), ([0.5, 0.0, 0.5], 1.0, [1, 0, 1])],
)
def test_top_p_that_is_reached_exactly(probs, top_p, kept):
    """No more tokens are needed then; of equals at the edge the lowest ids stay."""
    np.testing.assert_array_equal(top_p_mask(jnp.array(probs), top_p), np.array(kept, bool))


@pytest.mark.parametrize("mask, setting", [(top_k_mask, 7), (top_p_mask, 0.3)])
def test_outside_jit_it_is_compiled_once(mask, setting, caplog):
    one, other = jax.nn.softmax(jnp.asarray(LOGITS["random"][:2]).reshape(2, 1, -1))  # a shape of this test alone
    with jax.log_compiles():
        jax.block_until_ready(mask(one, setting))
        assert "Compiling" in caplog.text
        caplog.clear()
        jax.block_until_ready(mask(other, setting))
    assert "Compiling" not in caplog.text
