"""A drafter's configuration: what it takes from the target, and what is refused (released files: `test_hf_config.py`)."""

import dataclasses

import pytest

import gemma4
from drafter.config import config_for
from tests.models import TINY, TINY_DRAFTERS


def test_whatever_concerns_kv_is_the_targets():
    target = gemma4.PRESETS["26B-A4B"]
    ours = config_for(target, width=1024, mlp=8192, heads=16)
    assert all(ours.text.rope(kind) == target.rope(kind) for kind in set(target.layer_types))
    assert (ours.backbone_hidden_size, ours.text.vocab_size) == (target.hidden_size, target.vocab_size)
    assert ours.text.sliding_window == target.sliding_window
    assert not ours.text.enable_moe_block and ours.text.final_logit_softcapping is None
    for layer, kind in enumerate(ours.text.layer_types):
        donor = target.donors[kind]
        assert ours.text.kv_heads(layer) == target.kv_heads(donor)
        assert ours.text.layer_head_dim(layer) == target.layer_head_dim(donor)
    assert ours.text.donors == {} and set(ours.text.kv_source) == {None}  # its own layers hold no K/V
    ours.check_fits(target)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"convention": "hf"}, "convention: expected one of transformers, vllm, got 'hf'"),
        ({"num_centroids": 7}, "num_centroids: expected a divisor of the 64 tokens, got 7"),
        ({"centroid_intermediate_top_k": 0}, "centroid_intermediate_top_k: expected 1 to"),
        ({"text.num_kv_shared_layers": 0}, "a drafter's layers all read the target's K/V"),
        ({"text.final_logit_softcapping": 30.0}, "final_logit_softcapping: expected None as in every released drafter"),
    ],
)
def test_what_no_drafter_has_is_refused(fields, message):
    config = TINY_DRAFTERS["E2B"]
    with pytest.raises(ValueError, match=message):
        for name, value in fields.items():
            if name.startswith("text."):
                text = dataclasses.replace(config.text, **{name.removeprefix("text."): value})
                dataclasses.replace(config, text=text)
            else:
                dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 48, r"backbone_hidden_size / hidden_size: drafter 24, target 48"),
        ("sliding_window", 5, r"sliding_window: drafter \d+, target 5"),
        ("full_rope_theta", 5.0, r"full_attention RoPE: drafter .*, target"),
    ],
)
def test_a_drafter_of_another_target_is_named(field, value, message):
    other = dataclasses.replace(TINY["E2B"], **{field: value})
    with pytest.raises(ValueError, match=f"do not fit .*{message}.*use the drafter made for this target"):
        TINY_DRAFTERS["E2B"].check_fits(other)
