"""The five released sizes, built without memory, against the tensors of the released files."""

import functools
import json
import math
from pathlib import Path

import jax.numpy as jnp
import pytest

from gemma4 import PRESETS, Gemma4
from gemma4.checkpoints.params import linear_weights, named_params, shape_only
from gemma4.checkpoints.target import hf_name

CONFIGS = Path(__file__).parents[2] / "data" / "configs"

# Parameters of the text decoder, and the figures of the model cards: E2B and E4B without the per-layer table ("effective").
PUBLISHED = {
    "E2B": (2_279_759_104, "2.3B effective"),
    "E4B": (4_644_441_088, "4.5B effective"),  # the card rounds down, or leaves something else out
    "12B": (11_907_350_272, "11.95B with vision and audio"),
    "26B-A4B": (25_233_141_760, "25.2B"),
    "31B": (30_697_345_280, "30.7B"),
}


@functools.cache
def shapes(name: str) -> dict[str, list[int]]:
    """Shapes of our parameters as in a safetensors file."""
    blank = shape_only(Gemma4, PRESETS[name], jnp.bfloat16)
    transposed = linear_weights(blank)
    return {
        hf_name(key): list(leaf.shape[::-1] if key in transposed else leaf.shape)
        for key, leaf in named_params(blank).items()
    }


def released(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.tensors.json").read_text())


def count(tensors: dict[str, list[int]]) -> int:
    return sum(math.prod(shape) for shape in tensors.values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_tensor_of_the_released_file(name):
    ours, theirs = shapes(name), released(name)["tensors"]
    assert not theirs.keys() - ours.keys(), "missing"
    assert not ours.keys() - theirs.keys(), "unexpected"
    assert {key: shape for key, shape in ours.items() if theirs[key] != shape} == {}
    assert not ours.keys() & released(name)["unused_kv"].keys()


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_the_decoder(name):
    """The published figures count parameters; the layer scalars, one a layer, are buffers in the released files."""
    ours, config = shapes(name), PRESETS[name]
    per_layer_table = count({k: v for k, v in ours.items() if k == "embed_tokens_per_layer.weight"})
    assert count(ours) - per_layer_table - config.num_hidden_layers == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_the_whole_released_file(name):
    """Ours, the unused K/V of shared layers, and vision and audio make up the Hugging Face API's count exactly."""
    file = released(name)
    total = count(shapes(name)) + count(file["unused_kv"])
    for module in file["other_modules"].values():
        total += module["parameters"] + (module["buffers"] if file["published_total_has_other_buffers"] else 0)
    assert total == file["published_total"]


def test_active_parameters_of_the_mixture():
    """26B-A4B: 3.8B active, that is with 8 of the 128 experts."""
    experts = count({key: shape for key, shape in shapes("26B-A4B").items() if ".experts." in key})
    assert count(shapes("26B-A4B")) - 30 - experts * 120 // 128 == 3_822_530_560
