"""Checkpoints: what goes in comes out bit for bit, every layout of files is read, and every fault is one clear error."""

import inspect
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gemma4
from gemma4 import CheckpointError, storage
from gemma4.checkpoints import target
from gemma4.checkpoints.orbax import FOLDER
from gemma4.checkpoints.params import named_params
from gemma4.checkpoints.safetensors import INDEX, WEIGHTS
from gemma4.checkpoints.target import load_with_report
from tests.models import TINY, drafter_config, random_drafter, random_target

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@pytest.fixture(scope="module")
def target():
    return random_target(TINY["E2B"])


@pytest.fixture(scope="module")
def exported(target, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("e2b") / "hf"
    gemma4.export_hf(target, directory)
    return directory


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """A Hugging Face directory that the test may spoil."""
    return shutil.copytree(exported, tmp_path / "copy")


def rewrite(directory: Path, change) -> None:
    """Replace the tensors in `directory` by change(tensors)."""
    save_file(
        {k: np.ascontiguousarray(v) for k, v in change(load_file(directory / WEIGHTS)).items()}, directory / WEIGHTS
    )


def assert_same(ours, expected, dtype=None) -> None:
    ours, expected = named_params(ours), named_params(expected)
    assert list(ours) == list(expected)
    for name, leaf in expected.items():
        assert ours[name].dtype == (dtype or leaf.dtype), name
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(leaf).astype(ours[name].dtype), err_msg=name)


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [gemma4.save, gemma4.export_hf], ids=["orbax", "hf"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", TINY)
def test_round_trip(name, dtype, write, tmp_path):
    original = random_target(TINY[name], dtype=dtype)
    write(original, tmp_path / "new")
    loaded = gemma4.load(tmp_path / "new", dtype=dtype)
    assert loaded.config == TINY[name]
    assert_same(loaded, original)


@pytest.mark.parametrize("write", [gemma4.save, gemma4.export_hf], ids=["orbax", "hf"])
def test_dtype_is_the_callers(target, write, tmp_path):
    write(target, tmp_path / "new")
    assert_same(gemma4.load(tmp_path / "new"), target, jnp.float32)
    for dtype in (jnp.bfloat16, "bfloat16", np.float16):
        assert_same(gemma4.load(tmp_path / "new", dtype=dtype), target, jnp.dtype(dtype))


def test_export_in_another_dtype(target, tmp_path):
    gemma4.export_hf(target, tmp_path / "new", dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "new" / WEIGHTS).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_what_the_exported_file_holds(target, exported):
    params, tensors = named_params(target), load_file(exported / WEIGHTS)
    assert len(tensors) == len(params) and all(name.startswith("model.") for name in tensors)
    same = lambda name, array: np.testing.assert_array_equal(tensors[name], np.asarray(array))
    same("model.embed_tokens.weight", params["embed_tokens.weight"])
    same("model.embed_tokens_per_layer.weight", params["per_layer_inputs.embed_tokens_per_layer.weight"])
    same("model.per_layer_model_projection.weight", params["per_layer_inputs.per_layer_model_projection.weight"].T)
    same("model.layers.1.self_attn.q_proj.weight", params["layers.1.self_attn.q_proj.weight"].T)
    same("model.layers.1.layer_scalar", params["layers.1.layer_scalar"])
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


# -- the ways in which released files differ ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.", ""])
def test_prefixes(target, copy, prefix):
    rewrite(copy, lambda tensors: {prefix + key.removeprefix("model."): value for key, value in tensors.items()})
    assert_same(gemma4.load(copy), target)


def test_multimodal_file(target, copy, caplog):
    """Nested config.json, the decoder's prefix, other modalities beside it, and the tied head stored again."""
    other = (
        "lm_head.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight",
        "model.audio_tower.layers.0.norm_out.weight",
        "model.embed_vision.embedding_projection.weight",
        "model.embed_audio.embedding_projection.weight",
        "model.multi_modal_projector.weight",
        "vision_tower.std_bias",
    )
    rewrite(
        copy,
        lambda tensors: (
            {key.replace("model.", "model.language_model.", 1): value for key, value in tensors.items()}
            | {key: np.ones(3, np.float32) for key in other}
        ),
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": config, "vision_config": {}}))
    with caplog.at_level("INFO", "gemma4"):
        loaded, report = load_with_report(copy)
    assert_same(loaded, target)
    assert set(report.other) == set(other) and not report.unused_kv
    assert len(report.loaded) == len(named_params(target))
    assert f"{len(other)} tensors of other parts" in caplog.text


def test_head_of_a_nested_text_model_is_tied_too(target, copy):
    rewrite(
        copy,
        lambda tensors: (
            {key.replace("model.", "language_model.model.", 1): value for key, value in tensors.items()}
            | {"language_model.lm_head.weight": tensors["model.embed_tokens.weight"]}
        ),
    )
    loaded, report = load_with_report(copy)
    assert_same(loaded, target)
    assert report.other == ("language_model.lm_head.weight",)


def test_unused_kv_of_shared_layers(target, copy, caplog):
    """E2B and E4B files hold K/V weights that nothing reads; quantised releases leave them out.  Both load alike."""
    unused = {
        f"model.layers.{layer}.self_attn.{part}.weight": np.ones(3, np.float32)
        for layer in (3, 4)
        for part in ("k_proj", "v_proj", "k_norm", "v_norm")
    }
    rewrite(copy, lambda tensors: tensors | unused)
    with caplog.at_level("INFO", "gemma4"):
        loaded, report = load_with_report(copy)
    assert_same(loaded, target)
    assert set(report.unused_kv) == set(unused) and not report.other
    assert "8 tensors of KV-shared layers left out" in caplog.text


def shard(directory: Path, parts: int = 3) -> dict[str, str]:
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


# -- generation_config.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "ends"),
    [
        ({"eos_token_id": [1, 106, 50]}, (1, 106, 50)),  # as the released instruction-tuned checkpoints have it
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [0, 63]}, (0, 63)),
        ({"eos_token_id": []}, ()),
        ({"eos_token_id": None}, None),
        ({"top_k": 64}, None),
    ],
)
def test_tokens_that_end_a_text(target, copy, content, ends):
    (copy / "generation_config.json").write_text(json.dumps(content))
    loaded = gemma4.load(copy)
    assert loaded.config.eos_token_ids == (target.config.eos_token_ids if ends is None else ends)
    assert_same(loaded, target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"eos_token_id": [1, "<eos>"]}', "eos_token_ids: expected token ids"),
        ('{"eos_token_id": [1, 64]}', "eos_token_id: expected ids of this model's vocabulary, 0..63, got (1, 64)"),
        ('{"eos_token_id": -1}', "eos_token_ids: expected token ids in 0..2147483647, got (-1,)"),
    ],
)
def test_tokens_that_end_nothing(copy, text, message):
    (copy / "generation_config.json").write_text(text)
    fails(copy, str(copy / "generation_config.json"), message)


@pytest.mark.parametrize("put", [Path.mkdir, lambda file: file.symlink_to("nowhere")], ids=["a directory", "a link"])
def test_tokens_that_end_a_text_in_no_file(copy, put):
    put(copy / "generation_config.json")
    fails(copy, str(copy / "generation_config.json"), "expected a file, got a directory or a link to nothing")


# -- faults: one clear error each --------------------------------------------------------------------------------------


def fails(directory: Path, *fragments: str, **arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        gemma4.load(directory, **arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)
    return str(caught.value)


def test_no_directory(tmp_path):
    fails(tmp_path / "none", str(tmp_path / "none"), "no such directory")


def test_a_file_in_place_of_a_directory(copy):
    fails(copy / WEIGHTS, "no such directory")


def test_no_config(copy):
    (copy / "config.json").unlink()
    fails(copy, str(copy / "config.json"), "missing")


@pytest.mark.parametrize("text", ["{", "", "\x00\xff"])
def test_config_is_no_json(copy, text):
    (copy / "config.json").write_text(text, encoding="latin1")
    fails(copy, str(copy / "config.json"), "not valid JSON")


def test_config_is_nested_too_deep(copy):
    (copy / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    fails(copy, str(copy / "config.json"), "not valid JSON")


def test_config_whose_layers_all_share(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_kv_shared_layers": config["num_hidden_layers"]}))
    fails(copy, str(copy / "config.json"), "num_kv_shared_layers: expected an owner")


def test_config_is_no_object(copy):
    (copy / "config.json").write_text("[]")
    fails(copy, str(copy / "config.json"), "expected a JSON object, got a list")


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gemma4_assistant"])
def test_config_of_another_architecture(copy, model_type):
    (copy / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 8}))
    fails(copy, str(copy / "config.json"), model_type, "not the configuration of a Gemma 4 target")


def test_no_weights(copy):
    (copy / WEIGHTS).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"")
    fails(copy, str(copy), "no weights", WEIGHTS, "pytorch_model.bin")


DAMAGE = {
    "truncated": lambda whole: whole[:-7],
    "cut within the header": lambda whole: whole[:40],
    "empty": lambda whole: b"",
    "a Git LFS pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a broken header": lambda whole: whole[:9] + b"}" * 20 + whole[29:],
    "bytes after the end": lambda whole: whole + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights(copy, damage):
    (copy / WEIGHTS).write_bytes(damage((copy / WEIGHTS).read_bytes()))
    fails(copy, str(copy / WEIGHTS), "not a whole safetensors file")


def test_damaged_shard(copy):
    name = sorted(set(shard(copy).values()))[1]
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    fails(copy, str(copy / name), "not a whole safetensors file")


def test_missing_shard(copy):
    name = sorted(set(shard(copy).values()))[1]
    (copy / name).unlink()
    fails(copy, str(copy / name), "missing", INDEX)


def test_shard_without_the_tensor(copy):
    placed = shard(copy)
    key = "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(copy / placed[key])
    save_file({k: v for k, v in tensors.items() if k != key}, copy / placed[key])
    fails(copy, str(copy / placed[key]), f"lacks {key}")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]"])
def test_bad_index(copy, index):
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(index)
    fails(copy, str(copy / INDEX))


def test_all_tensors_that_do_not_fit_are_in_one_message(copy):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.k_proj.weight"]
        square = tensors["model.layers.1.self_attn.q_proj.weight"]
        return tensors | {"model.layers.1.self_attn.q_proj.weight": square.T, "model.layers.0.extra": np.ones(2)}

    rewrite(copy, change)
    message = fails(
        copy, str(copy), "same model?", "2 missing: ", "1 unexpected: layers.0.extra [2]", "1 of another shape"
    )
    assert "layers.0.self_attn.k_proj.weight [8, 24]" in message and "norm.weight [24]" in message
    assert "layers.1.self_attn.q_proj.weight is [24, 32], expected [32, 24]" in message


def test_many_tensors_are_counted_and_the_first_named(copy):
    rewrite(copy, lambda tensors: {"model.norm.weight": tensors["model.norm.weight"]})
    message = fails(
        copy, f"{len(named_params(random_target(TINY['E2B']))) - 1} missing: embed_tokens.weight [64, 24]; "
    )
    assert message.count("[") == 5 and message.endswith("; ...")


def test_kv_of_a_layer_that_owns_it_is_not_optional(copy):
    rewrite(copy, lambda t: {k: v for k, v in t.items() if k != "model.layers.2.self_attn.k_norm.weight"})
    fails(copy, "1 missing: layers.2.self_attn.k_norm.weight [16]")


def test_kv_of_a_layer_that_does_not_exist(copy):
    rewrite(copy, lambda t: t | {"model.layers.5.self_attn.k_proj.weight": np.ones(2, np.float32)})
    fails(copy, "1 unexpected: layers.5.self_attn.k_proj.weight [2]")


def test_weights_of_another_size(copy):
    gemma4.export_hf(random_target(TINY["12B"]), copy.parent / "other")
    shutil.copy(copy.parent / "other" / WEIGHTS, copy / WEIGHTS)
    fails(copy, "missing: layers.0.", "of another shape: layers.0.")


def test_two_names_for_one_tensor(copy):
    rewrite(copy, lambda t: t | {"norm.weight": t["model.norm.weight"]})
    fails(copy, "model.norm.weight", "are both norm.weight")


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool])
def test_quantised_weights(copy, dtype):
    rewrite(copy, lambda t: t | {"model.norm.weight": np.ones(24, dtype)})
    fails(copy, str(copy / WEIGHTS), "model.norm.weight", "quantised")


@pytest.mark.parametrize("dtype", [np.float64, np.int32, "int8", "float8_e4m3fn", "nonsense", None])
def test_dtypes_out_of_range(exported, target, tmp_path, dtype):
    fails(exported, "expected float32, bfloat16 or float16", dtype=dtype)
    if dtype is not None:  # None means: as they are
        with pytest.raises(CheckpointError, match="expected float32, bfloat16 or float16"):
            gemma4.export_hf(target, tmp_path / "new", dtype=dtype)
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def large(target):
    """A target with one weight that float16 does not reach, and the name of that weight."""
    name = "layers.1.self_attn.q_proj.weight"
    return storage.with_params(target, {name: named_params(target)[name].at[3, 5].set(-99_840)}), name


@pytest.mark.parametrize("write", [gemma4.save, gemma4.export_hf], ids=["orbax", "hf"])
@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
def test_weights_past_the_range_of_float16(large, stored, write, tmp_path):
    target, name = large
    target = jax.tree.map(lambda leaf: leaf.astype(stored), target)
    write(target, tmp_path / "new")
    fails(
        tmp_path / "new", f"{name} holds -99840", "past the range of float16; try float32 or bfloat16", dtype="float16"
    )
    for dtype in DTYPES.values():
        assert_same(gemma4.load(tmp_path / "new", dtype), target, dtype)


@pytest.mark.parametrize("write", [gemma4.save, gemma4.export_hf], ids=["orbax", "hf"])
def test_what_is_infinite_in_the_file_stays_so(target, write, tmp_path):
    name = "layers.1.self_attn.q_norm.weight"
    infinite = storage.with_params(target, {name: named_params(target)[name].at[0].set(-np.inf)})
    write(infinite, tmp_path / "new")
    assert_same(gemma4.load(tmp_path / "new", "float16"), infinite, jnp.float16)


def test_export_past_the_range_of_float16(large, tmp_path):
    target, name = large
    with pytest.raises(
        CheckpointError, match=f"^{name} holds -99840.0, past the range of float16; try float32 or bfloat16"
    ):
        gemma4.export_hf(target, tmp_path / "new", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_float64_past_the_range_of_float32(copy):
    rewrite(copy, lambda tensors: tensors | {"model.norm.weight": np.full(24, 1e300)})
    for dtype in ("float32", "bfloat16", "float16"):
        fails(copy, str(copy / WEIGHTS), "model.norm.weight holds 1e+300", f"past the range of {dtype}", dtype=dtype)


# -- Orbax faults ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(target, tmp_path) -> Path:
    gemma4.save(target, tmp_path / "saved")
    return tmp_path / "saved"


def test_orbax_folder_is_empty(saved):
    shutil.rmtree(saved / FOLDER)
    (saved / FOLDER).mkdir()
    fails(saved, str(saved / FOLDER))


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d", "ocdbt.process_0"])
def test_orbax_without_a_part(saved, name):
    part = saved / FOLDER / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    fails(saved, str(saved / FOLDER))


def test_orbax_of_another_size(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    fails(
        saved, str(saved / FOLDER), "15 of another shape: layers.0.mlp.down_proj.weight is [40, 24], expected [48, 24]"
    )


def test_orbax_without_config(saved):
    (saved / "config.json").unlink()
    fails(saved, str(saved / "config.json"), "missing")


# -- writing -----------------------------------------------------------------------------------------------------------

WRITERS = {"orbax": (gemma4.save, "save_orbax"), "hf": (gemma4.export_hf, "write_safetensors")}


@pytest.mark.parametrize(("write", "_"), WRITERS.values(), ids=WRITERS)
def test_nothing_is_overwritten(target, tmp_path, write, _):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(CheckpointError, match=f"{name}: exists and is not empty.*new directory"):
            write(target, tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


@pytest.mark.parametrize(("write", "_"), WRITERS.values(), ids=WRITERS)
def test_the_copy_for_a_cpu_is_not_written(target, tmp_path, write, _):
    twin = target.for_cpu()
    write(twin, tmp_path / "new")
    loaded = gemma4.load(tmp_path / "new")
    assert_same(loaded, target)
    assert loaded.cpu_head is None and twin.cpu_head is not None


@pytest.mark.parametrize(("write", "_"), WRITERS.values(), ids=WRITERS)
def test_another_model_is_not_written(tmp_path, write, _):
    write = inspect.unwrap(write)  # without the tests' own check of types
    draft = random_drafter(drafter_config(TINY["12B"], clustered=False))
    for model, kind in ((draft, "Drafter"), ("a/path", "str")):
        with pytest.raises(CheckpointError, match=f"^gemma4.{write.__name__}: expected a Gemma4, got a {kind}; "):
            write(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("write", "_"), WRITERS.values(), ids=WRITERS)
def test_an_empty_directory_and_new_parents_are_fine(target, tmp_path, write, _, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for directory in ("empty", tmp_path / "new" / "deep", "relative"):
        write(target, directory)
        assert_same(gemma4.load(directory), target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "new", "relative"], "no scratch directory left"


@pytest.mark.parametrize(("write", "inner"), WRITERS.values(), ids=WRITERS)
def test_nothing_half_written_stays(target, tmp_path, write, inner, monkeypatch):
    def fail_midway(module, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(storage, inner, fail_midway)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new/deep/er"):
        with pytest.raises(OSError, match="No space left"):
            write(target, tmp_path / name)
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_new_parents_stay_if_something_else_is_in_them(tmp_path):
    with pytest.raises(OSError, match="full"), storage.new_directory(tmp_path / "a" / "b" / "new"):
        (tmp_path / "a" / "notes.txt").write_text("mine")
        raise OSError("full")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "notes.txt"]


def test_parents_half_made_are_removed(tmp_path):
    with pytest.raises(OSError, match="too long"), storage.new_directory(tmp_path / "a" / ("b" * 300) / "new"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_public_names():
    assert gemma4.load is target.load and issubclass(CheckpointError, ValueError)


def test_an_export_keeps_the_dtype_of_the_parameters(tmp_path):
    gemma4.export_hf(random_target(TINY["E2B"], dtype=jnp.bfloat16), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "new" / WEIGHTS).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_double_precision_is_read(target, copy):
    rewrite(copy, lambda tensors: {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    assert_same(gemma4.load(copy), target)


def test_the_index_says_which_shard_counts(target, copy):
    """A shard may hold an old copy of a tensor that lies in another one."""
    tensors, name = load_file(copy / WEIGHTS), "model.norm.weight"
    (copy / WEIGHTS).unlink()
    save_file({name: tensors[name]}, copy / "a.safetensors")
    save_file(tensors | {name: 0 * tensors[name]}, copy / "b.safetensors")
    places = dict.fromkeys(tensors, "b.safetensors") | {name: "a.safetensors"}
    (copy / INDEX).write_text(json.dumps({"weight_map": places}))
    assert_same(gemma4.load(copy), target)
