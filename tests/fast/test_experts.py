"""The two forms of the experts agree, in their gradients too, and each runs where it is meant to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma4.fast.experts import experts_sparse, experts_twin
from gemma4.moe import experts_dense
from tests.gemma4.test_moe import choices
from tests.models import TINY, random_target

CONFIG = TINY["26B-A4B"]
sparse, dense = jax.jit(experts_sparse), jax.jit(experts_dense)


@pytest.fixture(scope="module")
def experts():
    return random_target(CONFIG).layers[0].experts


def arrays(experts) -> tuple:
    return experts.gate_up_proj[...], experts.down_proj[...]


def assert_close(ours, theirs) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_both_forms_agree(experts, shape):
    """float32 within 1e-5 of the largest."""
    args = *arrays(experts), *choices(*shape)
    assert_close(sparse(*args), dense(*args))


def test_both_forms_have_the_same_gradient(experts):
    """float32 within 1e-5 of the largest, for both weights, the hidden states and the router's weights."""

    def gradients(*args):
        *args, visited = args
        return [
            jax.grad(lambda *args, form=form: jnp.sin(form(*args, visited)).sum(), argnums=range(4))(*args)
            for form in (experts_sparse, experts_dense)
        ]

    jax.tree.map(assert_close, *jax.jit(gradients)(*arrays(experts), *choices(2, 3)))


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("time", [1, 16])
def test_other_experts_are_not_read(experts, backend, time):
    """All experts that no token visits are NaN.  Off the CPU that holds for few tokens; with many, every expert computes."""
    x, weights, visited = choices(1, time)
    visited = visited % (CONFIG.num_experts - 1)  # no token visits the last one
    call = jax.jit(lambda twin, *args: twin(*args))
    clean = call(experts_twin(experts, backend), x, weights, visited)
    assert_close(clean, dense(*arrays(experts), x, weights, visited))
    others = np.setdiff1d(np.arange(CONFIG.num_experts), visited)
    graph, state = nnx.split(experts)
    poisoned = nnx.merge(graph, jax.tree.map(lambda weight: weight.at[others].set(np.nan), state))
    out = call(experts_twin(poisoned, backend), x, weights, visited)
    if backend == "cpu" or visited.size < CONFIG.num_experts:
        np.testing.assert_array_equal(out, clean)
    else:
        assert np.isnan(out).any()
