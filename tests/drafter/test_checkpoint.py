"""A drafter's checkpoints: what is written is read bit for bit, and every fault is one clear error."""

import dataclasses
import inspect
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import drafter
import drafter.fast
import gemma4
from gemma4.checkpoints.params import named_params, with_params
from tests.models import TINY, drafter_config, random_drafter, random_target

LAYOUTS = [("E2B", True), ("E2B", False), ("12B", False), ("31B", False)]


@pytest.fixture
def exported(tmp_path) -> tuple[drafter.Drafter, Path]:
    model = random_drafter(drafter_config(TINY["E2B"], clustered=True))
    drafter.export_hf(model, tmp_path / "drafter")
    return model, tmp_path / "drafter"


def assert_same(ours: drafter.Drafter, other: drafter.Drafter) -> None:
    assert ours.config == other.config
    ours, other = named_params(ours), named_params(other)
    assert ours.keys() == other.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(other[name]), err_msg=name)


def rewrite(directory: Path, change) -> None:
    """Apply `change` to the tensors (a dict by name) of a checkpoint."""
    file = directory / "model.safetensors"
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(("layout", "clustered"), LAYOUTS)
def test_hugging_face_round_trip(layout, clustered, tmp_path):
    model = random_drafter(drafter_config(TINY[layout], clustered=clustered))
    drafter.export_hf(model, tmp_path / "drafter")
    assert_same(model, drafter.load(tmp_path / "drafter"))


def test_orbax_round_trip(tmp_path):
    model = random_drafter(drafter_config(TINY["E4B"], clustered=True))
    drafter.save(model, tmp_path / "drafter")
    assert_same(model, drafter.load(tmp_path / "drafter"))


def test_a_changed_byte_of_a_saved_drafter(tmp_path):
    model = random_drafter(drafter_config(TINY["E4B"], clustered=True))
    drafter.save(model, tmp_path / "drafter")
    largest = max((tmp_path / "drafter" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(gemma4.CheckpointError, match=f"^{largest}: not the file that was saved .* copy it again, or"):
        drafter.load(tmp_path / "drafter")
    largest.write_bytes(whole)
    assert_same(model, drafter.load(tmp_path / "drafter"))


def test_stored_frequencies_of_rope(exported):
    model, directory = exported
    stored = {"model.rotary_emb.full_attention_inv_freq": np.ones(3, np.float32)}
    rewrite(directory, lambda tensors: tensors.update(stored))
    assert_same(model, drafter.load(directory))


@pytest.mark.parametrize("write", [drafter.save, drafter.export_hf], ids=["orbax", "hf"])
@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_twin_is_not_written(backend, clustered, write, tmp_path):
    """It may hold arrays that a checkpoint has no names for; the drafter that it was made from is written."""
    model = random_drafter(drafter_config(TINY["E2B"], clustered=clustered))
    twin = drafter.fast.for_backend(model, backend)
    with pytest.raises(
        gemma4.CheckpointError, match="expected a Drafter, got a FastDrafter; .* as it was loaded or built"
    ):
        write(twin, tmp_path / "drafter")
    assert not list(tmp_path.iterdir())
    write(model, tmp_path / "drafter")
    assert_same(model, drafter.load(tmp_path / "drafter"))


@pytest.mark.parametrize("write", [drafter.save, drafter.export_hf], ids=["orbax", "hf"])
def test_another_model_is_not_written(write, tmp_path):
    write = inspect.unwrap(write)  # without the tests' own check of types
    with pytest.raises(gemma4.CheckpointError, match=f"^drafter.{write.__name__}: expected a Drafter, got a Gemma4; "):
        write(random_target(TINY["12B"]), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_file_has_the_names_and_kinds_of_released_drafters(exported):
    model, directory = exported
    tensors = load_file(directory / "model.safetensors")
    assert {name for name in tensors if "layers" not in name} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "pre_projection.weight",
        "post_projection.weight",
        "masked_embedding.centroids.weight",
        "masked_embedding.token_ordering",
    }
    width, backbone = model.config.text.hidden_size, model.config.backbone_hidden_size
    assert tensors["pre_projection.weight"].shape == (width, 2 * backbone)
    assert tensors["masked_embedding.centroids.weight"].shape == (model.config.num_centroids, width)
    assert tensors["masked_embedding.token_ordering"].dtype == np.int64
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation == {
        "num_assistant_tokens": 4,
        "num_assistant_tokens_schedule": "constant",
        "is_assistant": True,
    }


def test_export_in_bfloat16_leaves_the_ordering_alone(exported, tmp_path):
    model, _ = exported
    drafter.export_hf(model, tmp_path / "half", dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype.name for name, value in stored.items() if "ordering" not in name} == {"bfloat16"}
    assert stored["masked_embedding.token_ordering"].dtype == np.int64
    loaded = drafter.load(tmp_path / "half", dtype=jnp.bfloat16)
    assert loaded.embed_tokens.weight.dtype == jnp.bfloat16
    ordering = loaded.masked_embedding.token_ordering[...]
    assert ordering.dtype == jnp.int32
    np.testing.assert_array_equal(ordering, model.masked_embedding.token_ordering[...])


def test_a_tied_head_in_the_file(exported):
    """It must be the embedding table again."""
    model, directory = exported
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert_same(model, drafter.load(directory))
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    with pytest.raises(gemma4.CheckpointError, match=r"lm_head\.weight .* differs from model\.embed_tokens\.weight"):
        drafter.load(directory)


@pytest.mark.parametrize("form", ["hugging_face", "orbax"])
@pytest.mark.parametrize("bad_id", [-1, "repeated", "vocab_size"])
def test_ordering_must_be_a_permutation(form, bad_id, tmp_path):
    config = drafter_config(TINY["E2B"], clustered=True)
    model = random_drafter(config)
    ordering = model.masked_embedding.token_ordering[...]
    value = {"repeated": ordering[1], "vocab_size": config.text.vocab_size}.get(bad_id, bad_id)
    model = with_params(model, {"masked_embedding.token_ordering": ordering.at[0].set(value)})
    {"hugging_face": drafter.export_hf, "orbax": drafter.save}[form](model, tmp_path / "drafter")
    message = (
        rf"token_ordering must hold every id of 0\.\.63 once, but . ids .* \(id {smallest_wrong(ordering, value)}: "
    )
    with pytest.raises(gemma4.CheckpointError, match=message):
        drafter.load(tmp_path / "drafter")


def smallest_wrong(ordering, value) -> int:
    """The smallest id that is absent or repeated after `value` has replaced the first one."""
    wrong = {int(ordering[0])} | ({int(value)} if 0 <= int(value) < len(ordering) else set())
    return min(wrong)


def drop(name):
    return lambda tensors: tensors.pop(name)


BAD_TENSORS = {
    "missing": (drop("post_projection.weight"), r"1 missing: post_projection\.weight \[24, 20\]"),
    "unexpected": (lambda t: t.update(extra=np.zeros(1, np.float32)), r"1 unexpected: extra \[1\]"),
    "transposed": (
        lambda t: t.update({"pre_projection.weight": np.ascontiguousarray(t["pre_projection.weight"].T)}),
        r"1 of another shape: pre_projection\.weight is \[48, 20\], expected \[20, 48\]",
    ),
    "no clusters": (drop("masked_embedding.token_ordering"), r"1 missing: masked_embedding\.token_ordering \[64\]"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_do_not_fit(case, exported):
    change, message = BAD_TENSORS[case]
    rewrite(exported[1], change)
    with pytest.raises(gemma4.CheckpointError, match=message):
        drafter.load(exported[1])


def test_ordering_of_another_dtype(exported):
    name = "masked_embedding.token_ordering"
    rewrite(exported[1], lambda tensors: tensors.update({name: tensors[name].astype(np.float32)}))
    with pytest.raises(gemma4.CheckpointError, match=f"{name} is stored as F32, expected one of I64, I32"):
        drafter.load(exported[1])


def test_ordering_that_would_wrap(exported):
    """Cast to int32, these values are the permutation again."""
    name = "masked_embedding.token_ordering"
    rewrite(exported[1], lambda tensors: tensors.update({name: tensors[name] + 2**32}))
    with pytest.raises(gemma4.CheckpointError, match=f"{name} holds 42949.*, expected numbers that fit int32; fetch"):
        drafter.load(exported[1])


@pytest.mark.parametrize("convention", drafter.config.CONVENTIONS)
def test_the_convention_is_the_callers(convention, exported):
    original, directory = exported
    loaded = drafter.load(directory, convention=convention)
    assert loaded.config == dataclasses.replace(original.config, convention=convention)
    assert drafter.load(directory).config == original.config
    with pytest.raises(ValueError, match="convention: expected one of transformers, vllm, got 'sglang'"):
        drafter.load(directory, convention="sglang")
