"""The inputs of some layers are those layers' part of all inputs."""

import functools

import jax
import numpy as np
import pytest

from gemma4.fast.per_layer_embeddings import FastPerLayerEmbeddings
from gemma4.fast.twin import twin_of
from tests.models import TINY, random_target, random_tokens
from tests.numpy_reference import assert_close, normal


@functools.partial(jax.jit, static_argnums=3)
def of_layers(module, tokens, embedding, layers):
    return module.of_layers(tokens, embedding, slice(*layers))


of_all = jax.jit(lambda module, *args: module(*args))


@pytest.mark.parametrize("layout", ["E2B", "E4B"])
@pytest.mark.parametrize("layers", [(0, 5), (0, 2), (2, 5), (2, 2)])
def test_some_layers(layout, layers):
    """float32 within 1e-6 of the largest."""
    module = random_target(TINY[layout]).per_layer_embeddings
    twin = twin_of(module, FastPerLayerEmbeddings)
    tokens, embedding = random_tokens(2, 7), normal(2, 7, TINY[layout].hidden_size)
    expected = np.asarray(of_all(module, tokens, embedding)).astype(np.float64)
    assert_close(of_all(twin, tokens, embedding), expected, 1e-6)
    ours = of_layers(twin, tokens, embedding, layers)
    assert ours.shape[2] == layers[1] - layers[0]
    if ours.size:
        assert_close(ours, expected[:, :, slice(*layers)], 1e-6)
