"""The two forms of the experts agree, and each is the one that runs where it is meant to."""

import jax
import numpy as np
import pytest
from flax import nnx

from gemma4.moe import Experts
from tests.tiny import TINY

CONFIG = TINY["26B-A4B"]


@pytest.fixture(scope="module")
def experts():
    return Experts(CONFIG, rngs=nnx.Rngs(0), dtype=np.float32)


def choices(batch: int, time: int):
    """Rows, weights and experts; no token visits an expert twice, and two tokens share one."""
    rng = np.random.default_rng(batch * 10 + time)
    order = np.argsort(rng.random((batch, time, CONFIG.num_experts)), axis=-1)[..., : CONFIG.top_k_experts]
    order[0, -1, 0], order[0, -1, 1] = order[0, 0, 0], (order[0, 0, 0] + 1) % CONFIG.num_experts
    arrays = (rng.normal(size=(batch, time, CONFIG.hidden_size)), rng.uniform(0.1, 2, order.shape))
    return *(jax.numpy.asarray(array, np.float32) for array in arrays), jax.numpy.asarray(order, np.int32)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_both_forms_agree(experts, shape):
    args = choices(*shape)
    dense = experts.dense(*args)
    np.testing.assert_allclose(experts.chosen(*args), dense, atol=1e-5 * np.abs(dense).max())


def test_few_tokens_read_the_chosen_experts_alone(experts):
    """All other experts are NaN."""
    x, weights, chosen = choices(1, 1)
    clean = experts(x, weights, chosen)
    others = np.setdiff1d(np.arange(CONFIG.num_experts), chosen)
    graph, state = nnx.split(experts)
    poisoned = nnx.merge(graph, jax.tree.map(lambda weight: weight.at[others].set(np.nan), state))
    np.testing.assert_array_equal(poisoned(x, weights, chosen), clean)
    assert np.isnan(poisoned.dense(x, weights, chosen)).any()
