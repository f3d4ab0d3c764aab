"""One row, several rows: the same numbers as the plain lookup, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4.fast.embedding import FastEmbedding, embedding_twin
from tests.models import TINY, random_target, random_tokens


@pytest.mark.parametrize("shape", [(1, 1), (1,), (1, 3), (2, 1)])
def test_rows(shape):
    module = random_target(TINY["E2B"]).embed_tokens
    twin = embedding_twin(module, "gpu")
    assert isinstance(twin, FastEmbedding) and embedding_twin(module, "cpu") is module
    tokens = random_tokens(2, 7)[tuple(map(slice, shape))] if len(shape) == 2 else jnp.array([5])
    lookup = jax.jit(lambda module, tokens: module(tokens))
    ours, theirs = lookup(twin, tokens), lookup(module, tokens)
    assert ours.shape == (*shape, TINY["E2B"].hidden_size)
    np.testing.assert_array_equal(ours, theirs)
