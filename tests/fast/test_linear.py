"""Linear maps for training give the outputs and gradients of the plain ones, and the model is saved as any other."""

import jax
import numpy as np
import pytest

import gemma4
from gemma4.checkpoints.params import linear_weights, named_params
from gemma4.fast.linear import FlatLinear, for_training
from gemma4.layers import Linear
from gemma4.training import next_token_loss
from tests.models import random_tokens, small_drafter, small_target

loss_and_gradient = jax.jit(jax.value_and_grad(next_token_loss))


def test_the_loss_and_its_gradient():
    """float32 within 1e-5 of the largest of each gradient."""
    target, tokens = small_target(), random_tokens(2, 9) % 16
    (loss, gradient), (expected_loss, expected) = (
        loss_and_gradient(model, tokens) for model in (for_training(target), target)
    )
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    expected = named_params(expected)
    for name, ours in named_params(gradient).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(ours, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("build", [small_target, small_drafter])
def test_the_same_weights_in_every_linear_map(build):
    model = build()
    twin = for_training(model)
    assert type(twin) is type(model)
    assert linear_weights(twin) == linear_weights(model)
    assert all(leaf is named_params(model)[name] for name, leaf in named_params(twin).items())
    assert {type(layer.mlp.up_proj) for layer in twin.layers} == {FlatLinear}
    assert {type(layer.mlp.up_proj) for layer in model.layers} == {Linear}, "the model itself stays as it is"


def test_it_is_saved_as_the_plain_model(tmp_path):
    target = small_target()
    gemma4.export_hf(for_training(target), tmp_path / "target")
    loaded = gemma4.load(tmp_path / "target")
    jax.tree.map(np.testing.assert_array_equal, named_params(loaded), named_params(target))
