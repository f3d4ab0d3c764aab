"""The two forms of the experts agree, in their gradients too, and each runs where it is meant to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma4.fast.experts import experts_sparse
from gemma4.moe import Experts, experts_dense
from tests.models import TINY

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
    return *(jnp.asarray(array, np.float32) for array in arrays), jnp.asarray(order, np.int32)


def both(experts) -> tuple:
    return experts.gate_up_proj[...], experts.down_proj[...]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_both_forms_agree(experts, shape):
    args = *both(experts), *choices(*shape)
    expected = experts_dense(*args)
    np.testing.assert_allclose(experts_sparse(*args), expected, atol=1e-5 * np.abs(expected).max())


def test_the_weighted_sum_is_in_full_float32(experts):
    """Whatever products of float32 are elsewhere; those of the experts themselves are the program's to choose."""
    with jax.default_matmul_precision("default"):
        program = jax.make_jaxpr(lambda *args: experts_dense(*args))(*both(experts), *choices(2, 3))
    precisions = [e.params["precision"] for e in program.eqns if e.primitive.name == "dot_general"]
    assert [wanted is not None and jax.lax.Precision.HIGHEST in wanted for wanted in precisions] == [
        False,
        False,
        True,
        True,
    ]


def test_both_forms_have_the_same_gradient(experts):
    *arrays, visited = *both(experts), *choices(2, 3)
    gradients = [
        jax.grad(lambda *arrays, form=form: jnp.sin(form(*arrays, visited)).sum(), argnums=range(4))(*arrays)
        for form in (experts_sparse, experts_dense)
    ]
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    jax.tree.map(close, *gradients)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("time", [1, 16])
def test_the_chosen_experts_are_read_alone(experts, backend, time, monkeypatch):
    """All others are NaN.  On a GPU or TPU that holds for few tokens; many are computed by every expert."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, weights, visited = choices(1, time)
    visited = visited % (CONFIG.num_experts - 1)  # the last one rests
    clean = experts(x, weights, visited)
    others = np.setdiff1d(np.arange(CONFIG.num_experts), visited)
    graph, state = nnx.split(experts)
    poisoned = nnx.merge(graph, jax.tree.map(lambda weight: weight.at[others].set(np.nan), state))
    if backend == "cpu" or visited.size < CONFIG.num_experts:
        np.testing.assert_array_equal(poisoned(x, weights, visited), clean)
    else:
        assert np.isnan(poisoned(x, weights, visited)).any()
