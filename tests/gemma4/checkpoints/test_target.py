"""A target's checkpoints: what is written is read bit for bit, and every form of released files is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gemma4
from gemma4 import CheckpointError
from gemma4.checkpoints import target as target_module
from gemma4.checkpoints.params import named_params
from gemma4.checkpoints.safetensors import WEIGHTS
from gemma4.checkpoints.target import load_with_report
from tests.gemma4.checkpoints.common import DTYPES, assert_refused, assert_same, rewrite, with_each_writer
from tests.models import TINY, random_target


def test_the_public_names():
    assert gemma4.load is target_module.load and issubclass(CheckpointError, ValueError)


@with_each_writer
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", TINY)
def test_round_trip(name, dtype, write, tmp_path):
    original = random_target(TINY[name], dtype=dtype)
    write(original, tmp_path / "new")
    loaded = gemma4.load(tmp_path / "new", dtype=dtype)
    assert loaded.config == TINY[name]
    assert_same(loaded, original)


# -- the ways in which released files differ ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.", ""])
def test_prefixes(target, copy, prefix):
    rewrite(copy, lambda tensors: {prefix + key.removeprefix("model."): value for key, value in tensors.items()})
    assert_same(gemma4.load(copy), target)


def test_multimodal_file(target, copy, caplog):
    """Nested config.json, the decoder's prefix, other modalities beside it, and the tied head stored again."""
    other = (
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
            | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
        ),
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": config, "vision_config": {}}))
    with caplog.at_level("INFO", "gemma4"):
        loaded, report = load_with_report(copy)
    assert_same(loaded, target)
    assert set(report.other) == {*other, "lm_head.weight"} and not report.unused_kv
    assert len(report.loaded) == len(named_params(target))
    assert f"{len(other) + 1} tensors of other parts" in caplog.text


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


def test_stored_frequencies_of_rope(target, copy):
    """Some writers store buffers that follow from config.json."""
    stored = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.full_attention_inv_freq",
        "model.rotary_emb.sliding_attention_original_inv_freq",
    )
    rewrite(copy, lambda tensors: tensors | {name: np.ones(3, np.float32) for name in stored})
    loaded, report = load_with_report(copy)
    assert_same(loaded, target)
    assert set(report.other) == set(stored)
    rewrite(copy, lambda tensors: tensors | {"model.rotary_emb.scale": np.ones(3, np.float32)})
    assert_refused(copy, "1 unexpected: rotary_emb.scale [3]")


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
def test_bad_end_tokens(copy, text, message):
    (copy / "generation_config.json").write_text(text)
    assert_refused(copy, str(copy / "generation_config.json"), message)


@pytest.mark.parametrize(
    ("put", "found"),
    [(Path.mkdir, "a directory"), (lambda file: file.symlink_to("nowhere"), "a link to nothing")],
    ids=["a directory", "a link"],
)
def test_generation_config_that_is_not_a_file(copy, put, found):
    put(copy / "generation_config.json")
    assert_refused(copy, str(copy / "generation_config.json"), f"expected a file, got {found}")


# -- files of another model --------------------------------------------------------------------------------------------


def test_config_whose_layers_all_share(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_kv_shared_layers": config["num_hidden_layers"]}))
    assert_refused(copy, str(copy / "config.json"), "num_kv_shared_layers: expected an owner")


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gemma4_assistant"])
def test_config_of_another_architecture(copy, model_type):
    (copy / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 8}))
    assert_refused(copy, str(copy / "config.json"), model_type, "not the configuration of a Gemma 4 target")


def test_kv_of_a_layer_that_owns_it_is_not_optional(copy):
    rewrite(copy, lambda t: {k: v for k, v in t.items() if k != "model.layers.2.self_attn.k_norm.weight"})
    assert_refused(copy, "1 missing: layers.2.self_attn.k_norm.weight [16]")


def test_kv_of_a_layer_that_does_not_exist(copy):
    rewrite(copy, lambda t: t | {"model.layers.5.self_attn.k_proj.weight": np.ones(2, np.float32)})
    assert_refused(copy, "1 unexpected: layers.5.self_attn.k_proj.weight [2]")


def test_weights_of_another_size(copy):
    gemma4.export_hf(random_target(TINY["12B"]), copy.parent / "other")
    shutil.copy(copy.parent / "other" / WEIGHTS, copy / WEIGHTS)
    assert_refused(copy, "missing: layers.0.", "of another shape: layers.0.")


def test_two_names_for_one_tensor(copy):
    rewrite(copy, lambda t: t | {"norm.weight": t["model.norm.weight"]})
    assert_refused(copy, "model.norm.weight", "are both norm.weight")
