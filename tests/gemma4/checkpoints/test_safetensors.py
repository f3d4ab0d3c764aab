"""Safetensors files: their names and layout, shards, and damage."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gemma4
from gemma4.checkpoints import safetensors
from gemma4.checkpoints.params import linear_weights, named_params
from gemma4.checkpoints.safetensors import INDEX, WEIGHTS, write_safetensors
from tests.gemma4.checkpoints.common import assert_refused, assert_same, rewrite
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target

# -- what is written ---------------------------------------------------------------------------------------------------


def test_what_the_exported_file_holds(target, exported):
    params, tensors = named_params(target), load_file(exported / WEIGHTS)
    assert len(tensors) == len(params) and all(name.startswith("model.") for name in tensors)

    def assert_stored(name: str, array) -> None:
        np.testing.assert_array_equal(tensors[name], np.asarray(array))

    assert_stored("model.embed_tokens.weight", params["embed_tokens.weight"])
    assert_stored("model.embed_tokens_per_layer.weight", params["per_layer_embeddings.embed_tokens_per_layer.weight"])
    projection = params["per_layer_embeddings.per_layer_model_projection.weight"]
    assert_stored("model.per_layer_model_projection.weight", projection.T)
    assert_stored("model.layers.1.self_attn.q_proj.weight", params["layers.1.self_attn.q_proj.weight"].T)
    assert_stored("model.layers.1.layer_scalar", params["layers.1.layer_scalar"])
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", WEIGHTS]
    with safe_open(exported / WEIGHTS, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_experts_are_not_transposed(tmp_path):
    target = random_target(TINY["26B-A4B"])
    gemma4.export_hf(target, tmp_path / "new")
    tensors, params = load_file(tmp_path / "new" / WEIGHTS), named_params(target)
    for name in ("experts.gate_up_proj", "experts.down_proj", "router.scale", "router.per_expert_scale"):
        np.testing.assert_array_equal(tensors[f"model.layers.0.{name}"], np.asarray(params[f"layers.0.{name}"]))
    router = "layers.0.router.proj.weight"
    np.testing.assert_array_equal(tensors[f"model.{router}"], np.asarray(params[router]).T)


def assert_stored_in_bfloat16(directory: Path) -> None:
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(directory / WEIGHTS).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_export_in_another_dtype(target, tmp_path):
    gemma4.export_hf(target, tmp_path / "new", dtype=jnp.bfloat16)
    assert_stored_in_bfloat16(tmp_path / "new")


def test_an_export_keeps_the_dtype_of_the_parameters(tmp_path):
    gemma4.export_hf(random_target(TINY["E2B"], dtype=jnp.bfloat16), tmp_path / "new")
    assert_stored_in_bfloat16(tmp_path / "new")


# -- what is read ------------------------------------------------------------------------------------------------------


def test_double_precision_is_read(target, copy):
    rewrite(copy, lambda tensors: {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    assert_same(gemma4.load(copy), target)


def shard(directory: Path, parts: int = 3) -> dict[str, str]:
    """Split the weights file.  Returns the shard of each tensor."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    placed = {key: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, key in enumerate(tensors)}
    for name in set(placed.values()):
        save_file({key: tensors[key] for key in placed if placed[key] == name}, directory / name)
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return placed


def test_shards(target, copy):
    shard(copy)
    assert_same(gemma4.load(copy), target)


def test_shards_in_nested_folders_and_through_links(target, copy):
    """The Hugging Face cache holds links to blobs."""
    shard(copy)
    blobs = copy.parent / "blobs"
    blobs.mkdir()
    for file in list(copy.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    assert_same(gemma4.load(copy), target)


def test_the_index_decides_between_shards(target, copy):
    """A shard may hold an old copy of a tensor that the index places in another shard."""
    tensors, name = load_file(copy / WEIGHTS), "model.norm.weight"
    (copy / WEIGHTS).unlink()
    save_file({name: tensors[name]}, copy / "a.safetensors")
    save_file(tensors | {name: 0 * tensors[name]}, copy / "b.safetensors")
    placed = dict.fromkeys(tensors, "b.safetensors") | {name: "a.safetensors"}
    (copy / INDEX).write_text(json.dumps({"weight_map": placed}))
    assert_same(gemma4.load(copy), target)


# -- faults: one clear error each --------------------------------------------------------------------------------------


def test_no_weights(copy):
    (copy / WEIGHTS).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert_refused(copy, str(copy), "no weights", WEIGHTS, "pytorch_model.bin")


DAMAGE = {
    "truncated": lambda whole: whole[:-7],
    "truncated within the header": lambda whole: whole[:40],
    "empty": lambda whole: b"",
    "a Git LFS pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a broken header": lambda whole: whole[:9] + b"}" * 20 + whole[29:],
    "bytes after the end": lambda whole: whole + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights(copy, damage):
    (copy / WEIGHTS).write_bytes(damage((copy / WEIGHTS).read_bytes()))
    assert_refused(copy, str(copy / WEIGHTS), "not a whole safetensors file")


def test_damaged_shard(copy):
    name = sorted(set(shard(copy).values()))[1]
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    assert_refused(copy, str(copy / name), "not a whole safetensors file")


def test_missing_shard(copy):
    name = sorted(set(shard(copy).values()))[1]
    (copy / name).unlink()
    assert_refused(copy, str(copy / name), "missing", INDEX)


def test_shard_without_the_tensor(copy):
    placed = shard(copy)
    key = "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(copy / placed[key])
    save_file({k: v for k, v in tensors.items() if k != key}, copy / placed[key])
    assert_refused(copy, str(copy / placed[key]), f"lacks {key}")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]"])
def test_bad_index(copy, index):
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(index)
    assert_refused(copy, str(copy / INDEX))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool])
def test_quantised_weights(copy, dtype):
    rewrite(copy, lambda t: t | {"model.norm.weight": np.ones(24, dtype)})
    assert_refused(copy, str(copy / WEIGHTS), "model.norm.weight", "quantised")


def test_a_file_that_becomes_shorter_while_it_is_read(target, copy, monkeypatch):
    check_tensors = safetensors.check_tensors

    def shorten(*args):
        check_tensors(*args)
        (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-7])

    monkeypatch.setattr(safetensors, "check_tensors", shorten)
    assert_refused(copy, f"{copy / WEIGHTS}: became shorter while it was read; load it again when it is whole")


def test_blocks_are_the_tensor(exported, monkeypatch):
    """A block may end anywhere, not only where a row does."""
    tensors = load_file(exported / WEIGHTS)
    monkeypatch.setattr(safetensors, "BLOCK", 7)
    for key, tensor in safetensors.read_tensors(exported).items():
        np.testing.assert_array_equal(tensor.read(np.dtype(np.float32)), tensors[key])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_written_is_what_the_package_writes(dtype, tmp_path):
    """Names, shapes, dtypes and numbers, read by `safetensors`; integers, too, which a clustered drafter has."""
    draft_model = random_drafter(TINY_DRAFTERS["E2B"])
    file, numbers = tmp_path / "model.safetensors", named_params(draft_model)
    write_safetensors(draft_model, file, jnp.dtype(dtype))
    transposed = linear_weights(draft_model)
    expected = {name: np.asarray(leaf).T if name in transposed else np.asarray(leaf) for name, leaf in numbers.items()}
    expected = {
        name: array.astype(np.int64 if array.dtype == np.int32 else jnp.dtype(dtype))
        for name, array in expected.items()
    }
    found = load_file(file)
    assert found.keys() == expected.keys() and any(array.dtype == np.int64 for array in found.values())
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
