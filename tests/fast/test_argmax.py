"""argmax by two reductions is argmax: the lowest index among equals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4.fast.argmax import argmax
from gemma4.functional import argmax as plain

RNG = np.random.default_rng(0)
SCORES = {
    "random": RNG.normal(size=(3, 5, 301)),
    "many equal": RNG.integers(-2, 3, (3, 5, 301)),
    "all equal": np.zeros((4, 7)),
    "some impossible": np.where(RNG.random((8, 300)) < 0.9, -np.inf, RNG.normal(size=(8, 300))),
    "all impossible": np.full((2, 9), -np.inf),
    "infinite": RNG.choice([-np.inf, 0.0, np.inf], (8, 30)),
    "one score": np.ones((3, 1)),
}
both = jax.jit(lambda scores: (argmax(scores), plain(scores)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SCORES)
def test_argmax(kind, dtype):
    ours, expected = both(jnp.asarray(SCORES[kind], dtype))
    assert ours.dtype == expected.dtype == jnp.int32
    np.testing.assert_array_equal(ours, expected)
