"""`Config`: the released files, the ways of writing them, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from flax import nnx

from gemma4 import PRESETS, Config, Gemma4
from gemma4.config import FULL, SLIDING
from tests.models import TINY

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


def released(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def plain() -> dict:
    return TINY["12B"].to_hf()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_the_released_file(name):
    file = released(name)
    assert Config.from_hf(file) == PRESETS[name]
    # Plain, as a text-only checkpoint has it, the file names one end token; around text_config it names two.
    assert Config.from_hf(file["text_config"]) == dataclasses.replace(PRESETS[name], eos_token_ids=(1,))
    assert Config.from_hf(file | {"eos_token_id": None}) == dataclasses.replace(PRESETS[name], eos_token_ids=(1,))


@pytest.mark.parametrize("config", [*PRESETS.values(), *TINY.values()], ids=[*PRESETS, *(f"tiny-{k}" for k in TINY)])
def test_hf_round_trip(config):
    assert Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"bos_token_id": None},
        {"eos_token_ids": ()},
        {"eos_token_ids": (1, 106)},
        {"final_logit_softcapping": None},
        {"partial_rotary_factor": 0.5, "full_rope_theta": 5e5, "sliding_rope_theta": 2e4},
        {"num_global_key_value_heads": None},
    ],
)
def test_hf_round_trip_of_unusual_fields(change):
    config = dataclasses.replace(TINY["12B"], **change)
    assert Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    ("name", "donors"),
    [("E2B", (13, 14)), ("E4B", (22, 23)), ("12B", (46, 47)), ("26B-A4B", (28, 29)), ("31B", (58, 59))],
)
def test_donors_and_kv_sources(name, donors):
    config = PRESETS[name]
    assert (config.donors[SLIDING], config.donors[FULL]) == donors
    assert config.last_kv_owner == max(donors)
    shared = range(config.first_kv_shared_layer, config.num_hidden_layers)
    assert all(config.kv_source[i] == config.donors[config.layer_types[i]] for i in shared)
    assert all(config.kv_source[i] == i for i in range(config.first_kv_shared_layer))


def test_sizes_that_differ_between_layers():
    e2b, e4b, big = PRESETS["E2B"], PRESETS["E4B"], PRESETS["31B"]
    assert [e2b.mlp_width(i) for i in (0, 14, 15, 34)] == [6144, 6144, 12288, 12288]
    assert {e4b.mlp_width(i) for i in range(42)} == {10240}, "E4B shares K/V too, but is not double-wide"
    assert [(big.kv_heads(i), big.layer_head_dim(i), big.has_v_proj(i)) for i in (4, 5)] == [
        (16, 256, True),
        (4, 512, False),
    ]
    assert [(e4b.kv_heads(i), e4b.layer_head_dim(i), e4b.has_v_proj(i)) for i in (4, 5)] == [
        (2, 256, True),
        (2, 512, True),
    ]


def test_a_target_needs_an_owner_for_each_shared_layer():
    """A drafter's configuration may share all its layers; a target's may not."""
    config = dataclasses.replace(TINY["E2B"], layer_types=(SLIDING, SLIDING, FULL), num_kv_shared_layers=1)
    assert config.kv_source == (0, 1, None)
    with pytest.raises(ValueError, match="owns K/V before every layer"):
        Gemma4(config, rngs=nnx.Rngs(0))


def test_global_kv_heads_count_only_where_v_is_the_key():
    """As in transformers 5.22.2, where `attention_k_eq_v` gates the other field."""
    config = dataclasses.replace(PRESETS["E4B"], num_global_key_value_heads=1)
    assert {config.kv_heads(i) for i in range(42)} == {2}
    assert {dataclasses.replace(config, attention_k_eq_v=True).kv_heads(i) for i in (4, 5)} == {2, 1}


@pytest.mark.parametrize("keys", ["numbers", "zero-padded", "type"])
@pytest.mark.parametrize("name", ["E2B", "12B"])
def test_per_layer_config(name, keys):
    """transformers 5.22.2 writes the sizes of full layers by layer number."""
    file = PRESETS[name].to_hf()
    override = {"head_dim": file.pop("global_head_dim")}
    kv_heads = file.pop("num_global_key_value_heads")
    override |= {"num_key_value_heads": kv_heads} if kv_heads else {}
    full = [i for i, kind in enumerate(file["layer_types"]) if kind == FULL]
    file["per_layer_config"] = {
        "numbers": {str(i): override for i in full},
        "zero-padded": {f"{i:02}": override for i in full},
        "type": {FULL: override},
    }[keys]
    assert Config.from_hf(file) == PRESETS[name]


def test_what_rope_parameters_leave_out_is_the_released_value():
    file = PRESETS["31B"].to_hf()
    for rope in (None, {}, {FULL: {"rope_type": "proportional"}}, {FULL: {"rope_theta": 1e6}, SLIDING: None}):
        assert Config.from_hf(file | {"rope_parameters": rope}) == PRESETS["31B"]


def test_missing_layer_types_mean_five_to_one():
    file = PRESETS["31B"].to_hf()
    del file["layer_types"]
    assert Config.from_hf(file) == PRESETS["31B"]


REFUSED = {
    "another architecture": ({"model_type": "gemma3_text"}, "model_type.*gemma3_text"),
    "a drafter": ({"model_type": "gemma4_assistant"}, "model_type.*gemma4_assistant"),
    "a size missing": ({"hidden_size": None}, "hidden_size: missing"),
    "a size of the wrong kind": ({"hidden_size": "24"}, "hidden_size must be a whole number.*'24'"),
    "a size of zero": ({"vocab_size": 0}, r"vocab_size must be a whole number in 1\.\.2147483646, got 0"),
    "a window that is no number": ({"sliding_window": True}, "sliding_window must be a whole number"),
    "a switch that is text": ({"attention_k_eq_v": "false"}, "attention_k_eq_v must be true or false"),
    "KV heads of full layers that are text": (
        {"num_global_key_value_heads": "2"},
        "num_global_key_value_heads must be",
    ),
    "an end token that is text": ({"eos_token_id": ["<eos>"]}, "eos_token_ids: expected token ids in 0.*'<eos>'"),
    "an end token that is a switch": ({"eos_token_id": True}, "eos_token_ids: expected token ids.*True"),
    "an end token below 0": ({"eos_token_id": [1, -1]}, r"eos_token_ids: expected token ids.*\(1, -1\)"),
    "a start token past int32": (
        {"bos_token_id": 2**40},
        r"bos_token_id: expected token ids in 0\.\.2147483647, got 1",
    ),
    "a padding token past int32": ({"pad_token_id": 2**31}, "pad_token_id: expected token ids.*2147483648"),
    "a padding token that is a switch": ({"pad_token_id": False}, "pad_token_id: expected token ids.*False"),
    "a negative epsilon": ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be a positive number"),
    "a soft cap past float32": (
        {"final_logit_softcapping": 1e300},
        r"final_logit_softcapping must.*1\.2e-38 to 3\.4e\+38",
    ),
    "an infinite soft cap": (
        {"final_logit_softcapping": float("inf")},
        "final_logit_softcapping must.*float32.*got inf",
    ),
    "an infinite epsilon": ({"rms_norm_eps": float("inf")}, "rms_norm_eps must.*got inf"),
    "an epsilon that is no number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps must.*got nan"),
    "an epsilon that float32 takes for 0": ({"rms_norm_eps": 1e-50}, "rms_norm_eps must.*got 1e-50"),
    "a float of 401 digits": ({"rms_norm_eps": 10**400}, r"rms_norm_eps must.*got 10{79}$"),
    "a theta of 401 digits": ({"rope_parameters": {FULL: {"rope_theta": 10**400}}}, "full_rope_theta must.*got 10000"),
    "a window past int32": ({"sliding_window": 2**31}, r"sliding_window must.*in 1\.\.2147483646, got 2147483648"),
    "a window that a drafter's goes past": ({"sliding_window": 2**31 - 1}, "sliding_window must.*got 2147483647"),
    "a context past int32": ({"max_position_embeddings": 10**15}, "max_position_embeddings must.*got 1000000000000000"),
    "layers past int32": ({"num_hidden_layers": 10**15}, "num_hidden_layers must.*got 10000"),
    "an unknown layer type": ({"layer_types": [SLIDING, "mamba", FULL]}, "layer_types.*mamba"),
    "a layer type that is a list": ({"layer_types": [SLIDING, [], FULL]}, r"layer_types must.*\[\]"),
    "a layer type that is an object, with sizes by layer": (
        {"layer_types": [SLIDING, {}, FULL], "per_layer_config": {"2": {"head_dim": 32}}},
        "layer_types must.*{}",
    ),
    "a last layer that slides": ({"layer_types": [SLIDING, FULL, SLIDING]}, "layer_types must.*end with"),
    "too few layer types": ({"layer_types": [FULL]}, "expected 3 entries"),
    "layer types that are no list": ({"layer_types": 5}, "layer_types: expected a list"),
    "one layer, as a switch": ({"num_hidden_layers": True, "layer_types": [FULL]}, "num_hidden_layers must.*True"),
    "a number of layers that is text": ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number.*'3'"),
    "no layers": ({"num_hidden_layers": 0, "layer_types": None}, r"num_hidden_layers must.* in 1\.\..*, got 0"),
    "more shared layers than layers": ({"num_kv_shared_layers": 4}, r"num_kv_shared_layers must lie in 0\.\.3"),
    "only shared layers": ({"num_kv_shared_layers": 3}, "num_kv_shared_layers: expected an owner.*got 3 of 3"),
    "no owner of one type": ({"num_kv_shared_layers": 1}, "num_kv_shared_layers: expected an owner.*got 1 of 3"),
    "KV heads that do not divide": ({"num_key_value_heads": 3}, "4 query heads cannot be shared out among 3"),
    "an odd head": ({"head_dim": 7}, "head_dim must be even"),
    "an odd head of full layers": ({"global_head_dim": 15}, "global_head_dim must be even"),
    "an epsilon of zero": ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a positive number .*, got 0.0"),
    "a soft cap of zero": (
        {"final_logit_softcapping": 0},
        "final_logit_softcapping must be a positive number .*, got 0",
    ),
    "KV heads by layer where V is projected": (
        {"attention_k_eq_v": False, "per_layer_config": {"2": {"num_key_value_heads": 1}}},
        "per_layer_config: num_key_value_heads may differ in full layers only with attention_k_eq_v",
    ),
    "more active experts than experts": (
        {"enable_moe_block": True, "num_experts": 2, "top_k_experts": 3, "moe_intermediate_size": 8},
        "top_k_experts",
    ),
    "experts without a width": (
        {"enable_moe_block": True, "num_experts": 2, "top_k_experts": 1},
        "moe_intermediate_size",
    ),
    "a per-layer table too short": (
        {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 63},
        "vocab_size_per_layer_input must be at least vocab_size",
    ),
    "another activation": ({"hidden_activation": "silu"}, "hidden_activation.*silu"),
    "biases": ({"attention_bias": True}, "attention_bias"),
    "an untied head": ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    "bidirectional attention": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    "stretched RoPE": (
        {"rope_parameters": {FULL: {"rope_type": "yarn", "factor": 4.0}}},
        "rope_parameters: expected rope_type 'proportional'",
    ),
    "a RoPE factor": ({"rope_parameters": {FULL: {"rope_type": "proportional", "factor": 8.0}}}, "no factor"),
    "RoPE that is no object": ({"rope_parameters": [1]}, "rope_parameters"),
    "one RoPE for all layers": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        f"rope_parameters: expected an object with {SLIDING} and {FULL} alone.*'rope_theta': 500000.0",
    ),
    "scaled RoPE": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: expected none.*yarn"),
    "more than all pairs turn": (
        {"rope_parameters": {FULL: {"partial_rotary_factor": 1.5}}},
        r"partial_rotary_factor must lie in \(0, 1\], got 1.5",
    ),
    "sizes by layer that are no object": (
        {"per_layer_config": [1]},
        r"per_layer_config: expected an object, got \[1\]",
    ),
    "sizes by layer without full layers": (
        {"layer_types": [SLIDING, SLIDING, SLIDING], "per_layer_config": {}},
        "layer_types must.*end with",
    ),
    "a layer number that int() cannot read": ({"per_layer_config": {"²": {"head_dim": 32}}}, r"layers 0\.\.2, got '²'"),
    "full layers that differ": (
        {"layer_types": [SLIDING, FULL, FULL], "per_layer_config": {"1": {"head_dim": 32}, "2": {"head_dim": 16}}},
        "per_layer_config: expected the same",
    ),
    "one full layer left out": (
        {"layer_types": [SLIDING, FULL, FULL], "per_layer_config": {"1": {"head_dim": 32}}},
        "per_layer_config: expected the same",
    ),
    "a sliding layer that differs": ({"per_layer_config": {"0": {"head_dim": 32}}}, "none in sliding"),
    "another field by layer": (
        {"per_layer_config": {"2": {"hidden_size": 32}}},
        "head_dim and num_key_value_heads alone",
    ),
    "a layer that does not exist": ({"per_layer_config": {"7": {"head_dim": 32}}}, r"layers 0\.\.2, got '7'"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_field_named(change, message):
    file = plain() | change
    with pytest.raises(ValueError, match=message):
        Config.from_hf({k: v for k, v in file.items() if v is not None})


def test_text_config_that_is_no_object():
    with pytest.raises(ValueError, match="text_config"):
        Config.from_hf({"model_type": "gemma4", "text_config": [1]})


def test_head_that_the_outer_configuration_unties():
    """In transformers it decides; the inner one, absent or true, does not count."""
    file = {"model_type": "gemma4", "tie_word_embeddings": True, "text_config": plain()}
    assert Config.from_hf(file) == TINY["12B"]
    with pytest.raises(ValueError, match="tie_word_embeddings: expected True"):
        Config.from_hf(file | {"tie_word_embeddings": False})


@pytest.mark.parametrize("change", [{"bos_token_id": 0, "pad_token_id": 2**31 - 1}, {"eos_token_ids": (0, 2**31 - 1)}])
def test_token_ids_may_lie_past_a_small_vocabulary(change):
    config = dataclasses.replace(TINY["12B"], **change)
    assert Config.from_hf(config.to_hf()) == config


def test_what_the_inner_configuration_has_is_refused_too():
    with pytest.raises(ValueError, match="attention_bias: expected False"):
        Config.from_hf({"model_type": "gemma4", "text_config": plain() | {"attention_bias": True}})


def test_a_target_inside_another_model():
    with pytest.raises(ValueError, match="model_type: expected one of .* got 'gemma4_assistant'"):
        Config.from_hf({"model_type": "gemma4_assistant", "text_config": plain()})


def test_token_ids_that_a_file_leaves_out():
    file = {name: value for name, value in plain().items() if name not in ("bos_token_id", "eos_token_id")}
    config = Config.from_hf(file)
    assert (config.bos_token_id, config.eos_token_ids) == (2, (1,))


def test_full_layers_without_a_head_size_of_their_own():
    file = plain() | {"per_layer_config": {FULL: {"num_key_value_heads": 1}}}
    del file["global_head_dim"]
    assert Config.from_hf(file).global_head_dim == file["head_dim"]


def test_a_configuration_in_which_nothing_turns():
    with pytest.raises(ValueError, match="partial_rotary_factor must lie in"):
        dataclasses.replace(TINY["12B"], partial_rotary_factor=0.0)
