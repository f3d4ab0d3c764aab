"""`Config`: what it derives from its fields, and fields that contradict each other."""

import dataclasses

import pytest
from flax import nnx

from gemma4 import PRESETS, Gemma4
from gemma4.config import FULL, SLIDING
from tests.models import TINY


@pytest.mark.parametrize(
    ("name", "donors"),
    [("E2B", (13, 14)), ("E4B", (22, 23)), ("12B", (46, 47)), ("26B-A4B", (28, 29)), ("31B", (58, 59))],
)
def test_donors_and_kv_sources(name, donors):
    config = PRESETS[name]
    assert (config.donors[SLIDING], config.donors[FULL]) == donors
    assert config.first_kv_shared_layer - 1 == max(donors)
    shared = range(config.first_kv_shared_layer, config.num_hidden_layers)
    assert all(config.kv_source[i] == config.donors[config.layer_types[i]] for i in shared)
    assert all(config.kv_source[i] == i for i in range(config.first_kv_shared_layer))


def test_sizes_that_differ_between_layers():
    e2b, e4b, large = PRESETS["E2B"], PRESETS["E4B"], PRESETS["31B"]
    assert [e2b.mlp_width(i) for i in (0, 14, 15, 34)] == [6144, 6144, 12288, 12288]
    assert {e4b.mlp_width(i) for i in range(42)} == {10240}, "E4B shares K/V too, but is not double-wide"

    def attention_sizes(config, layer):
        return config.kv_heads(layer), config.layer_head_dim(layer), config.k_eq_v(layer)

    assert [attention_sizes(large, i) for i in (4, 5)] == [(16, 256, False), (4, 512, True)]
    assert [attention_sizes(e4b, i) for i in (4, 5)] == [(2, 256, False), (2, 512, False)]


def test_a_target_needs_an_owner_for_each_shared_layer():
    """A drafter's configuration may share all its layers; a target's may not."""
    config = dataclasses.replace(TINY["E2B"], layer_types=(SLIDING, SLIDING, FULL), num_kv_shared_layers=1)
    assert config.kv_source == (0, 1, None)
    with pytest.raises(ValueError, match="owns K/V before every layer"):
        Gemma4(config, rngs=nnx.Rngs(0))


def test_global_kv_heads_count_only_with_k_eq_v():
    """As in transformers 5.22.2, where `attention_k_eq_v` gates the other field."""
    config = dataclasses.replace(PRESETS["E4B"], num_global_key_value_heads=1)
    assert {config.kv_heads(i) for i in range(42)} == {2}
    assert {dataclasses.replace(config, attention_k_eq_v=True).kv_heads(i) for i in (4, 5)} == {2, 1}


CONTRADICTIONS = {
    "no rotating pair": ({"partial_rotary_factor": 0.0}, "partial_rotary_factor: expected a number over 0.*got 0.0"),
    "an odd head": ({"head_dim": 7}, "^head_dim: expected an even number"),
    "a sliding last layer": ({"layer_types": (FULL, SLIDING)}, "layer_types: expected .* the last one full"),
    "more shared layers than layers": ({"num_kv_shared_layers": 4}, "num_kv_shared_layers: expected 0 to 3"),
    "KV heads that do not divide": ({"num_key_value_heads": 3}, "layer 0: expected a multiple of 3 KV heads, got 4"),
    "experts without a width": ({"enable_moe_block": True}, "enable_moe_block needs moe_intermediate_size"),
    "a short per-layer table": (
        {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 63},
        "vocab_size_per_layer_input: expected at least vocab_size",
    ),
}


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused_when_it_is_built(change, message):
    """Wherever it comes from; `checkpoints/test_hf_config.py` has what a file may hold beyond these."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY["12B"], **change)
