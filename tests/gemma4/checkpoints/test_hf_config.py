"""`config.json` of a target, in and out: the released files, the forms that a file may have, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from gemma4 import PRESETS
from gemma4.checkpoints.hf_config import read_target, target_json
from gemma4.config import FULL, SLIDING
from tests.models import TINY

CONFIGS = Path(__file__).parents[2] / "data" / "configs"


def released(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def plain() -> dict:
    return target_json(TINY["12B"])


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_the_released_file(name):
    file = released(name)
    assert read_target(file) == PRESETS[name]
    # Plain, as a text-only checkpoint has it, the file names one end token; around text_config it names two.
    assert read_target(file["text_config"]) == dataclasses.replace(PRESETS[name], eos_token_ids=(1,))
    assert read_target(file | {"eos_token_id": None}) == dataclasses.replace(PRESETS[name], eos_token_ids=(1,))


@pytest.mark.parametrize("config", [*PRESETS.values(), *TINY.values()], ids=[*PRESETS, *(f"tiny-{k}" for k in TINY)])
def test_hf_round_trip(config):
    assert read_target(json.loads(json.dumps(target_json(config)))) == config


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
    assert read_target(json.loads(json.dumps(target_json(config)))) == config


@pytest.mark.parametrize("keys", ["numbers", "zero-padded", "type"])
@pytest.mark.parametrize("name", ["E2B", "12B"])
def test_per_layer_config(name, keys):
    """transformers 5.22.2 writes the sizes of full layers by layer number."""
    file = target_json(PRESETS[name])
    override = {"head_dim": file.pop("global_head_dim")}
    kv_heads = file.pop("num_global_key_value_heads")
    override |= {"num_key_value_heads": kv_heads} if kv_heads else {}
    full = [i for i, kind in enumerate(file["layer_types"]) if kind == FULL]
    file["per_layer_config"] = {
        "numbers": {str(i): override for i in full},
        "zero-padded": {f"{i:02}": override for i in full},
        "type": {FULL: override},
    }[keys]
    assert read_target(file) == PRESETS[name]


def test_missing_rope_parameters_have_the_released_values():
    file = target_json(PRESETS["31B"])
    for rope in (None, {}, {FULL: {"rope_type": "proportional"}}, {FULL: {"rope_theta": 1e6}, SLIDING: None}):
        assert read_target(file | {"rope_parameters": rope}) == PRESETS["31B"]


@pytest.mark.parametrize("newer", [True, False])
def test_rope_under_its_older_name(newer):
    """Where a file has both, the older one counts (tests/parity has the same with transformers)."""
    config = dataclasses.replace(TINY["12B"], sliding_rope_theta=2e4, full_rope_theta=5e5, partial_rotary_factor=0.5)
    file = plain() | {"rope_scaling": target_json(config)["rope_parameters"]}
    if not newer:
        del file["rope_parameters"]
    assert read_target(file) == config
    assert read_target(plain() | {"rope_scaling": None}) == TINY["12B"]


def test_missing_layer_types_mean_five_to_one():
    file = target_json(PRESETS["31B"])
    del file["layer_types"]
    assert read_target(file) == PRESETS["31B"]


REFUSED = {
    "another architecture": ({"model_type": "gemma3_text"}, "model_type.*gemma3_text"),
    "a drafter": ({"model_type": "gemma4_assistant"}, "model_type.*gemma4_assistant"),
    "a size missing": ({"hidden_size": None}, "hidden_size: missing"),
    "a size of the wrong kind": ({"hidden_size": "24"}, "hidden_size must be a whole number.*'24'"),
    "a size of zero": ({"vocab_size": 0}, r"vocab_size must be a whole number in 1\.\.2147483646, got 0"),
    "a window that is not a number": ({"sliding_window": True}, "sliding_window must be a whole number"),
    "a boolean that is text": ({"attention_k_eq_v": "false"}, "attention_k_eq_v must be true or false"),
    "KV heads of full layers that are text": (
        {"num_global_key_value_heads": "2"},
        "num_global_key_value_heads must be",
    ),
    "an end token that is text": ({"eos_token_id": ["<eos>"]}, "eos_token_ids: expected token ids in 0.*'<eos>'"),
    "an end token that is a boolean": ({"eos_token_id": True}, "eos_token_ids: expected token ids.*True"),
    "an end token below 0": ({"eos_token_id": [1, -1]}, r"eos_token_ids: expected token ids.*\(1, -1\)"),
    "a start token past int32": (
        {"bos_token_id": 2**40},
        r"bos_token_id: expected token ids in 0\.\.2147483647, got 1",
    ),
    "a padding token past int32": ({"pad_token_id": 2**31}, "pad_token_id: expected token ids.*2147483648"),
    "a padding token that is a boolean": ({"pad_token_id": False}, "pad_token_id: expected token ids.*False"),
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
    "an epsilon of NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps must.*got nan"),
    "an epsilon that is 0 in float32": ({"rms_norm_eps": 1e-50}, "rms_norm_eps must.*got 1e-50"),
    "a float of 401 digits": ({"rms_norm_eps": 10**400}, r"rms_norm_eps must.*got 10{79}$"),
    "a theta of 401 digits": ({"rope_parameters": {FULL: {"rope_theta": 10**400}}}, "full_rope_theta must.*got 10000"),
    "a window past int32": ({"sliding_window": 2**31}, r"sliding_window must.*in 1\.\.2147483646, got 2147483648"),
    "a window too large for a drafter": ({"sliding_window": 2**31 - 1}, "sliding_window must.*got 2147483647"),
    "a context past int32": ({"max_position_embeddings": 10**15}, "max_position_embeddings must.*got 1000000000000000"),
    "layers past int32": ({"num_hidden_layers": 10**15}, "num_hidden_layers must.*got 10000"),
    "an unknown layer type": ({"layer_types": [SLIDING, "mamba", FULL]}, "layer_types.*mamba"),
    "a layer type that is a list": ({"layer_types": [SLIDING, [], FULL]}, r"layer_types: expected.*\[\]"),
    "a layer type that is an object, with sizes per layer": (
        {"layer_types": [SLIDING, {}, FULL], "per_layer_config": {"2": {"head_dim": 32}}},
        "layer_types: expected.*{}",
    ),
    "a sliding last layer": ({"layer_types": [SLIDING, FULL, SLIDING]}, "layer_types: expected.*the last one full"),
    "too few layer types": ({"layer_types": [FULL]}, "expected 3 entries"),
    "layer types that are not a list": ({"layer_types": 5}, "layer_types: expected a list"),
    "one layer, as a boolean": ({"num_hidden_layers": True, "layer_types": [FULL]}, "num_hidden_layers must.*True"),
    "a number of layers that is text": ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number.*'3'"),
    "no layers": ({"num_hidden_layers": 0, "layer_types": None}, r"num_hidden_layers must.* in 1\.\..*, got 0"),
    "more shared layers than layers": (
        {"num_kv_shared_layers": 4},
        r"num_kv_shared_layers: expected 0 to 3 \(the number of layers\), got 4",
    ),
    "only shared layers": ({"num_kv_shared_layers": 3}, "num_kv_shared_layers: expected an owner.*got 3 of 3"),
    "no owner of one type": ({"num_kv_shared_layers": 1}, "num_kv_shared_layers: expected an owner.*got 1 of 3"),
    "KV heads that do not divide": (
        {"num_key_value_heads": 3},
        "layer 0: expected a multiple of 3 KV heads, got 4 query heads",
    ),
    "an odd head": ({"head_dim": 7}, "^head_dim: expected an even number.* got 7"),
    "an odd head of full layers": ({"global_head_dim": 15}, "global_head_dim: expected an even number.* got 15"),
    "an epsilon of zero": ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a positive number .*, got 0.0"),
    "a soft cap of zero": (
        {"final_logit_softcapping": 0},
        "final_logit_softcapping must be a positive number .*, got 0",
    ),
    "KV heads per layer where V has a projection": (
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
        r"vocab_size_per_layer_input: expected at least vocab_size \(64\)",
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
    "RoPE that is not an object": ({"rope_parameters": [1]}, "rope_parameters"),
    "one RoPE for all layers": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        f"rope_parameters: expected an object with {SLIDING} and {FULL} alone.*'rope_theta': 500000.0",
    ),
    "scaled RoPE": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: expected an object.*yarn"),
    "scaled RoPE that is not an object": ({"rope_scaling": 4.0}, "rope_scaling: expected an object.*4.0"),
    "an empty older RoPE": ({"rope_scaling": {}}, "rope_scaling: expected an object with.*got {}"),
    "an older RoPE of one layer type": (
        {"rope_scaling": {FULL: {"rope_theta": 5e5}}},
        f"rope_scaling: expected an object with {SLIDING} and {FULL}",
    ),
    "an older RoPE, stretched": (
        {"rope_scaling": {SLIDING: {}, FULL: {"rope_type": "yarn"}}},
        "rope_scaling: expected rope_type 'proportional' for full_attention",
    ),
    "stretched RoPE under an older name": (
        {"rope_parameters": {SLIDING: {"type": "linear"}}},
        "rope_parameters: expected rope_type 'default' for sliding_attention.*linear",
    ),
    "more rotating pairs than pairs": (
        {"rope_parameters": {FULL: {"partial_rotary_factor": 1.5}}},
        "partial_rotary_factor: expected a number over 0 and up to 1, got 1.5",
    ),
    "sizes per layer that are not an object": (
        {"per_layer_config": [1]},
        r"per_layer_config: expected an object, got \[1\]",
    ),
    "sizes per layer without full layers": (
        {"layer_types": [SLIDING, SLIDING, SLIDING], "per_layer_config": {}},
        "layer_types: expected.*the last one full",
    ),
    "a layer number that int() cannot read": ({"per_layer_config": {"²": {"head_dim": 32}}}, r"layers 0\.\.2, got '²'"),
    "full layers that differ": (
        {"layer_types": [SLIDING, FULL, FULL], "per_layer_config": {"1": {"head_dim": 32}, "2": {"head_dim": 16}}},
        "per_layer_config: expected the same",
    ),
    "one full layer missing": (
        {"layer_types": [SLIDING, FULL, FULL], "per_layer_config": {"1": {"head_dim": 32}}},
        "per_layer_config: expected the same",
    ),
    "a sliding layer that differs": ({"per_layer_config": {"0": {"head_dim": 32}}}, "none in sliding"),
    "another field per layer": (
        {"per_layer_config": {"2": {"hidden_size": 32}}},
        "head_dim and num_key_value_heads alone",
    ),
    "a layer that does not exist": ({"per_layer_config": {"7": {"head_dim": 32}}}, r"layers 0\.\.2, got '7'"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_field(change, message):
    file = plain() | change
    with pytest.raises(ValueError, match=message):
        read_target({k: v for k, v in file.items() if v is not None})


def test_text_config_that_is_not_an_object():
    with pytest.raises(ValueError, match="text_config"):
        read_target({"model_type": "gemma4", "text_config": [1]})


def test_an_untied_head_in_the_outer_configuration():
    """transformers reads `tie_word_embeddings` there; the inner one, absent or true, does not count."""
    file = {"model_type": "gemma4", "tie_word_embeddings": True, "text_config": plain()}
    assert read_target(file) == TINY["12B"]
    with pytest.raises(ValueError, match="tie_word_embeddings: expected True"):
        read_target(file | {"tie_word_embeddings": False})


@pytest.mark.parametrize("change", [{"bos_token_id": 0, "pad_token_id": 2**31 - 1}, {"eos_token_ids": (0, 2**31 - 1)}])
def test_token_ids_may_exceed_a_small_vocabulary(change):
    config = dataclasses.replace(TINY["12B"], **change)
    assert read_target(target_json(config)) == config


def test_an_unsupported_option_in_the_inner_configuration():
    with pytest.raises(ValueError, match="attention_bias: expected False"):
        read_target({"model_type": "gemma4", "text_config": plain() | {"attention_bias": True}})


def test_the_text_of_another_model():
    with pytest.raises(ValueError, match="model_type: expected one of .* got 'gemma4_assistant'"):
        read_target({"model_type": "gemma4_assistant", "text_config": plain()})


def test_default_token_ids():
    file = {name: value for name, value in plain().items() if name not in ("bos_token_id", "eos_token_id")}
    config = read_target(file)
    assert (config.bos_token_id, config.eos_token_ids) == (2, (1,))


def test_full_layers_without_a_head_size_of_their_own():
    file = plain() | {"per_layer_config": {FULL: {"num_key_value_heads": 1}}}
    del file["global_head_dim"]
    assert read_target(file).global_head_dim == file["head_dim"]
