"""Per-layer embeddings against NumPy in float64: float32 within 2e-6 of the largest magnitude."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests import numpy_reference as reference
from tests.models import TINY, random_target, random_tokens
from tests.numpy_reference import assert_close, normal, weights_of

call = jax.jit(lambda module, *args: module(*args))


@pytest.mark.parametrize("layout", ["E2B", "E4B"])
def test_per_layer_inputs(layout):
    """Table row times sqrt(p), plus the norm of the projected embedding over sqrt(d); their sum over sqrt(2)."""
    module, config = random_target(TINY[layout]).per_layer_embeddings, TINY[layout]
    tokens, embedding = random_tokens(2, 7), normal(2, 7, config.hidden_size, scale=3)
    ours = call(module, tokens, embedding)
    assert ours.shape == (2, 7, config.num_hidden_layers, config.hidden_size_per_layer_input)
    for row in range(2):
        expected = reference.per_layer_inputs(
            weights_of(module), config, tokens[row], embedding[row].astype(np.float64)
        )
        assert_close(ours[row], expected, 2e-6, f"row {row}")


def test_factors_are_not_rounded_to_bfloat16():
    """The table's scale is rounded to the table's dtype first, as in every embedding; 2^-0.5 and d^-0.5 are not.

    A projection of zeros leaves the table's rows times their scale, over sqrt(2), each product rounded once.
    """
    module, width = random_target(TINY["E2B"], dtype=jnp.bfloat16).per_layer_embeddings, 12
    tokens = random_tokens(2, 7)
    ours = np.asarray(call(module, tokens, jnp.zeros((2, 7, 24), jnp.bfloat16)))
    round_ = lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)
    table = np.asarray(module.embed_tokens_per_layer.weight[...]).astype(np.float32)
    rows = round_(table[tokens] * round_(np.float32(width**0.5))).reshape(2, 7, -1, width)
    np.testing.assert_array_equal(ours.astype(np.float32), round_(rows * np.float32(2**-0.5)))
    assert (round_(rows * np.float32(2**-0.5)) != round_(rows * round_(np.float32(2**-0.5)))).any()
