"""The router and the experts against NumPy in float64: float32 within 2e-6 of the largest magnitude.

Weights as `random_target` draws them: the router's scale in 0.5 .. 1.5, per-expert scales in 0.4 .. 1.6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4.moe import experts_dense
from tests import numpy_reference as reference
from tests.models import TINY, random_target
from tests.numpy_reference import assert_close, normal, weights_of

CONFIG = TINY["26B-A4B"]

call = jax.jit(lambda module, *args: module(*args))


@pytest.fixture(scope="module")
def layer():
    return random_target(CONFIG).layers[0]


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_router(layer, scale):
    """Norm without weight, `scale`, 1/sqrt(d), softmax over all experts, the best two to sum 1, times per-expert scale."""
    residual = normal(2, 7, CONFIG.hidden_size, scale=scale)
    weights, experts = map(np.asarray, call(layer.router, residual))
    assert weights.dtype == np.float32 and weights.shape == experts.shape == (2, 7, CONFIG.top_k_experts)
    for row in range(2):
        args = weights_of(layer.router), residual[row].astype(np.float64), CONFIG.top_k_experts, CONFIG.rms_norm_eps
        for t, visits in enumerate(reference.router(*args)):
            assert experts[row, t].tolist() == list(visits), "best first"
            assert_close(weights[row, t], np.array(list(visits.values())), 2e-6)
    assert len(np.unique(experts)) > CONFIG.top_k_experts, "the test needs tokens that visit different experts"


def test_the_scale_of_the_residual_does_not_matter(layer):
    """The router normalises it: a residual a hundred times as large visits the same experts with the same weights."""
    residual = normal(1, 5, CONFIG.hidden_size)
    (weights, experts), (of_large, experts_of_large) = (call(layer.router, x) for x in (residual, 100 * residual))
    np.testing.assert_array_equal(experts_of_large, experts)
    np.testing.assert_allclose(of_large, weights, rtol=1e-5)


def test_router_weights_are_float32_in_bfloat16():
    """The softmax and what follows: weights divided by their experts' scales add up to 1 as float32 does (1e-6)."""
    router = random_target(CONFIG, dtype=jnp.bfloat16).layers[0].router
    weights, experts = call(router, jnp.asarray(normal(2, 7, CONFIG.hidden_size), jnp.bfloat16))
    scales = np.asarray(router.per_expert_scale[...], np.float32)[np.asarray(experts)]
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose((np.asarray(weights) / scales).sum(axis=-1), 1, rtol=0, atol=1e-6)


def choices(batch: int, time: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, weights and experts; no token visits an expert twice, and two tokens share one."""
    rng = np.random.default_rng(batch * 10 + time)
    order = np.argsort(rng.random((batch, time, CONFIG.num_experts)), axis=-1)[..., : CONFIG.top_k_experts]
    order[0, -1, 0], order[0, -1, 1] = order[0, 0, 0], (order[0, 0, 0] + 1) % CONFIG.num_experts
    x, weights = rng.normal(size=(batch, time, CONFIG.hidden_size)), rng.uniform(0.1, 2, order.shape)
    return x.astype(np.float32), weights.astype(np.float32), order.astype(np.int32)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_experts(layer, shape):
    """Each expert is a gated MLP, gate and up stacked; a token's output is the weighted sum of its experts'."""
    x, weights, experts = choices(*shape)
    ours = call(layer.experts, x, weights, experts)
    for row in range(shape[0]):
        visits = [
            dict(zip(e.tolist(), w.tolist(), strict=True)) for e, w in zip(experts[row], weights[row], strict=True)
        ]
        expected = reference.experts(weights_of(layer.experts), x[row].astype(np.float64), visits)
        assert_close(ours[row], expected, 2e-6, f"row {row}")


def test_the_weighted_sum_is_in_full_float32(layer):
    """Whatever the precision of other float32 products.  That of the experts' own products is the program's choice."""
    arrays = layer.experts.gate_up_proj[...], layer.experts.down_proj[...]
    with jax.default_matmul_precision("default"):
        program = jax.make_jaxpr(lambda *args: experts_dense(*args))(*arrays, *choices(2, 3))
    precisions = [e.params["precision"] for e in program.eqns if e.primitive.name == "dot_general"]
    is_highest = [wanted is not None and jax.lax.Precision.HIGHEST in wanted for wanted in precisions]
    assert is_highest == [False, False, True, True]
