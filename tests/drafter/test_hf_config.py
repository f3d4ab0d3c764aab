"""`config.json` of a drafter, in and out: the released files, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

import drafter
import gemma4
from drafter.hf_config import drafter_json, read_drafter
from tests.models import TINY, TINY_DRAFTERS, drafter_config, random_drafter, random_target

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


@pytest.fixture
def exported(tmp_path) -> tuple[drafter.Drafter, Path]:
    draft_model = random_drafter(drafter_config(TINY["E2B"], clustered=True))
    drafter.export_hf(draft_model, tmp_path / "drafter")
    return draft_model, tmp_path / "drafter"


@pytest.mark.parametrize("size", drafter.PRESETS)
def test_preset_is_the_released_file(size):
    file = json.loads((CONFIGS / f"{size}-assistant.json").read_text())
    assert read_drafter(file) == drafter.PRESETS[size]


@pytest.mark.parametrize("config", [*drafter.PRESETS.values(), *TINY_DRAFTERS.values()])
def test_round_trip(config):
    """But for the convention, which transformers' files have no field for, and ours do."""
    for convention in drafter.config.CONVENTIONS:
        this = dataclasses.replace(config, convention=convention)
        assert read_drafter(json.loads(json.dumps(drafter_json(this)))) == this


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
def test_options_that_no_drafter_has_are_refused(fields, message, exported):
    """Engines differ on them: one would compute the option, another would leave it out."""
    file = exported[1] / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= fields
    file.write_text(json.dumps(config))
    with pytest.raises(gemma4.CheckpointError, match=f"config.json: {message}"):
        drafter.load(exported[1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_config", [1], r"text_config: expected an object, got \[1\]"),
        ("text_config", None, "text_config: missing from the configuration"),
        ("backbone_hidden_size", "24", "backbone_hidden_size must be a whole number in 1..2147483646, got '24'"),
        ("num_centroids", 0, "num_centroids must be a whole number in 1..2147483646, got 0"),
        ("num_centroids", 2**31, "num_centroids must be a whole number in 1..2147483646, got 2147483648"),
        ("num_centroids", 3, "num_centroids: expected a divisor of the 64 tokens, got 3"),
        ("centroid_intermediate_top_k", 5, "centroid_intermediate_top_k: expected 1 to 4, got 5"),
        ("use_ordered_embeddings", "yes", "use_ordered_embeddings must be true or false, got 'yes'"),
        ("tie_word_embeddings", False, "tie_word_embeddings: expected True"),
        ("convention", "other", "convention: expected one of transformers, vllm, got 'other'"),
    ],
)
def test_bad_fields(field, value, message, exported):
    file = exported[1] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(gemma4.CheckpointError, match=f"config.json: {message}"):
        drafter.load(exported[1])


def test_target_given_for_a_drafter(tmp_path):
    gemma4.export_hf(random_target(TINY["12B"]), tmp_path / "target")
    with pytest.raises(gemma4.CheckpointError, match="not the configuration of a Gemma 4 drafter"):
        drafter.load(tmp_path / "target")


def test_all_clusters_may_be_scored(exported):
    clusters = exported[0].config.num_centroids
    config = dataclasses.replace(exported[0].config, centroid_intermediate_top_k=clusters)
    assert read_drafter(drafter_json(config)) == config
