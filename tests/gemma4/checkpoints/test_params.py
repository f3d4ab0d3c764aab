"""Parameters by name: dtypes and their ranges, tensors that do not fit, and what may be written."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gemma4
import gemma4.fast
from gemma4 import CheckpointError, Gemma4
from gemma4.checkpoints.params import linear_weights, named_params, shape_only, with_params
from gemma4.checkpoints.safetensors import WEIGHTS
from tests.gemma4.checkpoints.common import DTYPES, assert_refused, assert_same, rewrite, with_each_writer
from tests.models import SMALL, TINY, drafter_config, random_drafter, random_target


def test_names_are_paths(target):
    """A parameter is at its name, and a copy with another value there leaves the module as it is."""
    name = "layers.1.self_attn.q_proj.weight"
    before = target.layers[1].self_attn.q_proj.weight[...]
    assert named_params(target)[name] is before
    changed = with_params(target, {name: 2 * before})
    np.testing.assert_array_equal(changed.layers[1].self_attn.q_proj.weight[...], 2 * before)
    assert target.layers[1].self_attn.q_proj.weight[...] is before
    assert {key for key, leaf in named_params(changed).items() if leaf is not named_params(target)[key]} == {name}


def test_shape_only_is_the_module_without_numbers():
    blank, built = shape_only(Gemma4, SMALL, jnp.bfloat16), Gemma4(SMALL, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    expected = {key: (leaf.shape, leaf.dtype) for key, leaf in named_params(built).items()}
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in named_params(blank).items()} == expected
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in named_params(blank).values())


def test_linear_weights_are_the_matrices_of_linear_maps():
    """Tables, norms, scalars and experts are stored as they are."""
    names = linear_weights(random_target(TINY["26B-A4B"])) | linear_weights(random_target(TINY["E2B"]))
    assert {name.rsplit(".", 2)[-2] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "proj"),
        *("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),
    }


# -- dtypes ------------------------------------------------------------------------------------------------------------


@with_each_writer
def test_dtype_is_the_callers(target, write, tmp_path):
    write(target, tmp_path / "new")
    assert_same(gemma4.load(tmp_path / "new"), target, jnp.float32)
    for dtype in (jnp.bfloat16, "bfloat16", np.float16):
        assert_same(gemma4.load(tmp_path / "new", dtype=dtype), target, jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", [np.float64, np.int32, "int8", "float8_e4m3fn", "nonsense", None])
def test_other_dtypes_are_refused(exported, target, tmp_path, dtype):
    assert_refused(exported, "expected float32, bfloat16 or float16", dtype=dtype)
    if dtype is not None:  # None means: as they are
        with pytest.raises(CheckpointError, match="expected float32, bfloat16 or float16"):
            gemma4.export_hf(target, tmp_path / "new", dtype=dtype)
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def large(target):
    """A target with one weight that float16 does not reach, and the name of that weight."""
    name = "layers.1.self_attn.q_proj.weight"
    return with_params(target, {name: named_params(target)[name].at[3, 5].set(-99_840)}), name


@with_each_writer
@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
def test_weights_past_the_range_of_float16(large, stored, write, tmp_path):
    target, name = large
    target = jax.tree.map(lambda leaf: leaf.astype(stored), target)
    write(target, tmp_path / "new")
    expected = f"{name} holds -99840", "past the range of float16; try float32 or bfloat16"
    assert_refused(tmp_path / "new", *expected, dtype="float16")
    for dtype in DTYPES.values():
        assert_same(gemma4.load(tmp_path / "new", dtype), target, dtype)


@with_each_writer
def test_infinite_weights_stay_infinite(target, write, tmp_path):
    name = "layers.1.self_attn.q_norm.weight"
    infinite = with_params(target, {name: named_params(target)[name].at[0].set(-np.inf)})
    write(infinite, tmp_path / "new")
    assert_same(gemma4.load(tmp_path / "new", "float16"), infinite, jnp.float16)


def test_export_past_the_range_of_float16(large, tmp_path):
    target, name = large
    message = f"^{name} holds -99840.0, past the range of float16; try float32 or bfloat16"
    with pytest.raises(CheckpointError, match=message):
        gemma4.export_hf(target, tmp_path / "new", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_float64_past_the_range_of_float32(copy):
    rewrite(copy, lambda tensors: tensors | {"model.norm.weight": np.full(24, 1e300)})
    for dtype in ("float32", "bfloat16", "float16"):
        expected = "model.norm.weight holds 1e+300", f"past the range of {dtype}"
        assert_refused(copy, str(copy / WEIGHTS), *expected, dtype=dtype)


# -- tensors that do not fit -------------------------------------------------------------------------------------------


def test_all_tensors_that_do_not_fit_are_in_one_message(copy):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.k_proj.weight"]
        square = tensors["model.layers.1.self_attn.q_proj.weight"]
        return tensors | {"model.layers.1.self_attn.q_proj.weight": square.T, "model.layers.0.extra": np.ones(2)}

    rewrite(copy, change)
    counts = "2 missing: ", "1 unexpected: layers.0.extra [2]", "1 of another shape"
    message = assert_refused(copy, str(copy), "same model?", *counts)
    assert "\n" not in message
    assert "layers.0.self_attn.k_proj.weight [8, 24]" in message and "norm.weight [24]" in message
    assert "layers.1.self_attn.q_proj.weight is [24, 32], expected [32, 24]" in message


def test_many_tensors_are_counted_and_the_first_named(target, copy):
    rewrite(copy, lambda tensors: {"model.norm.weight": tensors["model.norm.weight"]})
    message = assert_refused(copy, f"{len(named_params(target)) - 1} missing: embed_tokens.weight [64, 24]; ")
    assert message.count("[") == 3 and message.endswith("; ...")


# -- what may be written -----------------------------------------------------------------------------------------------


@with_each_writer
def test_another_model_is_not_written(tmp_path, write):
    write = inspect.unwrap(write)  # without the tests' own check of types
    draft_model = random_drafter(drafter_config(TINY["12B"], clustered=False))
    for model, kind in ((draft_model, "Drafter"), ("a/path", "str")):
        with pytest.raises(CheckpointError, match=f"^gemma4.{write.__name__}: expected a Gemma4, got a {kind}; "):
            write(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@with_each_writer
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_twin_is_not_written(target, tmp_path, write, backend):
    """It may hold arrays that a checkpoint has no names for; the target that it was made from is written."""
    twin = gemma4.fast.for_backend(target, backend)
    with pytest.raises(CheckpointError, match="expected a Gemma4, got a FastGemma4; .* each as it was loaded or built"):
        write(twin, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    write(target, tmp_path / "new")
    assert_same(gemma4.load(tmp_path / "new"), target)
