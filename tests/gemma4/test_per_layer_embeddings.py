"""Per-layer embeddings against their NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.gemma4 import twins
from tests.models import TINY, random_target, random_tokens


@pytest.mark.parametrize("layout", ["E2B", "E4B"])
def test_per_layer_inputs(layout):
    target = random_target(TINY[layout])
    config, module = target.config, target.per_layer_inputs
    tokens = random_tokens(2, 3)
    embedding = target.embed_tokens(jnp.asarray(tokens))
    ours = jax.jit(lambda module, *args: module(*args))(module, jnp.asarray(tokens), embedding)
    assert ours.shape == (2, 3, config.num_hidden_layers, config.hidden_size_per_layer_input)
    weights = twins.weights_of(module)
    for index in np.ndindex(2, 3):
        twin = twins.per_layer_inputs(config, weights, tokens[index], np.asarray(embedding[index], np.float64))
        np.testing.assert_allclose(ours[index], twin, rtol=0, atol=2e-6 * np.abs(twin).max())


def test_a_layer_has_its_own_part_of_the_table():
    """A change in one layer's columns changes that layer's input alone."""
    target = random_target(TINY["E2B"])
    module, width = target.per_layer_inputs, target.config.hidden_size_per_layer_input
    tokens, embedding = jnp.array([[5]]), jnp.ones((1, 1, target.config.hidden_size))
    before = module(tokens, embedding)
    table = module.embed_tokens_per_layer.weight[...]
    changed = jax.tree.map(lambda leaf: leaf, module)  # a copy
    changed.embed_tokens_per_layer.weight[...] = table.at[5, 2 * width : 3 * width].add(1.0)
    difference = np.abs(np.asarray(changed(tokens, embedding) - before))[0, 0].max(axis=1)
    assert (difference > 0).tolist() == [layer == 2 for layer in range(target.config.num_hidden_layers)]
