"""A drafter written and read again is the same drafter; a bad checkpoint is one clear error."""

import dataclasses
import inspect
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import drafter
import gemma4
from gemma4.checkpoints.params import named_params
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


@pytest.mark.parametrize("write", [drafter.save, drafter.export_hf], ids=["orbax", "hf"])
@pytest.mark.parametrize("clustered", [True, False])
def test_the_copies_for_a_cpu_are_not_written(clustered, write, tmp_path):
    model = random_drafter(drafter_config(TINY["E2B"], clustered=clustered))
    twin = model.for_cpu()
    assert (twin.masked_embedding.cpu_blocks if clustered else twin.cpu_head) is not None
    write(twin, tmp_path / "drafter")
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


def test_tied_head_in_the_file_is_ignored(exported):
    model, directory = exported
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    assert_same(model, drafter.load(directory))


@pytest.mark.parametrize("form", ["hugging_face", "orbax"])
@pytest.mark.parametrize("bad_id", [-1, "repeated", "vocab_size"])
def test_ordering_must_be_a_permutation(form, bad_id, tmp_path):
    config = drafter_config(TINY["E2B"], clustered=True)
    model = random_drafter(config)
    ordering = model.masked_embedding.token_ordering[...]
    value = {"repeated": ordering[1], "vocab_size": config.text.vocab_size}.get(bad_id, bad_id)
    model.masked_embedding.token_ordering[...] = ordering.at[0].set(value)
    {"hugging_face": drafter.export_hf, "orbax": drafter.save}[form](model, tmp_path / "drafter")
    message = (
        rf"token_ordering must hold every id of 0\.\.63 once, but . ids .* \(id {smallest_wrong(ordering, value)}: "
    )
    with pytest.raises(gemma4.CheckpointError, match=message):
        drafter.load(tmp_path / "drafter")


def smallest_wrong(ordering, value) -> int:
    """The smallest id that is absent, or there twice, once `value` has replaced the first one."""
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


def test_ordering_of_another_kind(exported):
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 64},
            "hidden_size_per_layer_input: .* 0 .* 6",
        ),
        ({"use_double_wide_mlp": True}, "use_double_wide_mlp: expected False .* got True"),
        (
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8},
            "enable_moe_block: ",
        ),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: expected None .* got 30.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_drafter_has_is_refused(fields, message, exported):
    """Not left out: one engine would compute it, another would not."""
    file = exported[1] / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= fields
    file.write_text(json.dumps(config))
    with pytest.raises(gemma4.CheckpointError, match=f"config.json: {message}"):
        drafter.load(exported[1])


@pytest.mark.parametrize("convention", drafter.config.CONVENTIONS)
def test_convention_of_the_callers_choice(convention, exported):
    original, directory = exported
    loaded = drafter.load(directory, convention=convention)
    assert loaded.config == dataclasses.replace(original.config, convention=convention)
    assert drafter.load(directory).config == original.config
    with pytest.raises(ValueError, match="convention: expected one of transformers, vllm, got 'sglang'"):
        drafter.load(directory, convention="sglang")


def test_target_given_for_a_drafter(tmp_path):
    gemma4.export_hf(random_target(TINY["12B"]), tmp_path / "target")
    with pytest.raises(gemma4.CheckpointError, match="not the configuration of a Gemma 4 drafter"):
        drafter.load(tmp_path / "target")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_config", [1], r"text_config: expected an object, got \[1\]"),
        ("text_config", None, "text_config: missing from the configuration"),
        ("backbone_hidden_size", "24", "backbone_hidden_size must be a whole number in 1..2147483646, got '24'"),
        ("num_centroids", 0, "num_centroids must be a whole number in 1..2147483646, got 0"),
        ("num_centroids", 2**31, "num_centroids must be a whole number in 1..2147483646, got 2147483648"),
        ("num_centroids", 3, "64 tokens do not divide into 3 clusters of one size"),
        ("centroid_intermediate_top_k", 5, r"centroid_intermediate_top_k must lie in 1\.\.4, got 5"),
        ("use_ordered_embeddings", "yes", "use_ordered_embeddings must be true or false, got 'yes'"),
        ("tie_word_embeddings", False, "tie_word_embeddings: expected True"),
        ("convention", "other", "convention: expected one of transformers, vllm, got 'other'"),
    ],
)
def test_configuration_that_makes_no_sense(field, value, message, exported):
    file = exported[1] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(gemma4.CheckpointError, match=f"config.json: {message}"):
        drafter.load(exported[1])


@pytest.mark.parametrize(("layout", "clustered"), LAYOUTS)
def test_transformers_reads_every_tensor(layout, clustered, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.22")
    model = random_drafter(drafter_config(TINY[layout], clustered=clustered))
    drafter.export_hf(model, tmp_path / "drafter")
    theirs, report = transformers.Gemma4AssistantForCausalLM.from_pretrained(
        tmp_path / "drafter", output_loading_info=True
    )
    assert {kind: list(names) for kind, names in report.items() if names} == {}
    torch.testing.assert_close(
        theirs.pre_projection.weight.detach(), torch.tensor(np.asarray(model.pre_projection.weight[...]).T)
    )
    if clustered:
        assert theirs.masked_embedding.token_ordering.tolist() == model.masked_embedding.token_ordering[...].tolist()
    assert theirs.generation_config.num_assistant_tokens == 4 and theirs.generation_config.is_assistant
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(model, drafter.load(tmp_path / "theirs"))


def test_all_clusters_may_be_scored(exported):
    clusters = exported[0].config.num_centroids
    config = dataclasses.replace(exported[0].config, centroid_intermediate_top_k=clusters)
    assert drafter.Config.from_hf(config.to_hf()) == config
