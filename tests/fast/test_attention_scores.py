"""Both forms of the product of queries and keys, against the einsum of `functional.attention_scores`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4.fast.attention_scores import scores
from gemma4.functional import attention_scores
from tests.numpy_reference import assert_close, normal

GROUP = 4  # query heads per KV head
both = jax.jit(lambda query, key: (scores(query, key), attention_scores(query, key)))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 5e-7), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("time", [1, 2, 15, 16])
def test_both_forms_give_the_same_scores(time, dtype, tolerance):
    """float32 within 5e-7 of the largest, bfloat16 within one rounding."""
    query, key = normal(2, 3, GROUP, time, 8), normal(2, 3, 9, 8, seed=1)
    ours, expected = both(jnp.asarray(query, dtype), jnp.asarray(key, dtype))
    assert ours.dtype == expected.dtype == dtype
    assert_close(ours, np.asarray(expected).astype(np.float64), tolerance)


@pytest.mark.parametrize("time, keys_first", [(1, True), (15, True), (16, False)])
def test_the_form_follows_from_the_number_of_queries(time, keys_first):
    """By how many queries share a KV head, here four times `time`: keys first for fewer than 64."""
    query, key = jnp.zeros((1, 1, GROUP, time, 8)), jnp.zeros((1, 1, 9, 8))
    program = jax.make_jaxpr(scores)(query, key)
    (product,) = [equation for equation in program.jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert (product.invars[0].aval.shape == key.shape) == keys_first
