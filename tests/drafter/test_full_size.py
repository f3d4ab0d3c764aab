"""The five released drafters, as shapes only: every tensor of the published files, and no other."""

import json
import math
from pathlib import Path

import pytest

import drafter
import gemma4
from drafter.checkpoint import hf_name
from gemma4.checkpoints.params import linear_weights, named_params, shape_only

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
# Weights alone, without the layer scalars and the ordering, which transformers counts as buffers.
PUBLISHED = {
    "E2B": 77_731_328,
    "E4B": 78_517_760,
    "12B": 422_856_960,
    "26B-A4B": 419_711_232,
    "31B": 469_518_592,
}


def released(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.fixture(scope="module", params=PUBLISHED)
def size(request) -> str:
    return request.param


def test_every_published_tensor_and_no_other(size):
    blank = shape_only(drafter.Drafter, drafter.PRESETS[size], "bfloat16")
    transposed = linear_weights(blank)
    ours = {
        hf_name(name): list(leaf.shape[::-1] if name in transposed else leaf.shape)
        for name, leaf in named_params(blank).items()
    }
    assert ours == released(f"{size}-assistant.tensors")["tensors"]


def test_number_of_parameters(size):
    config = drafter.PRESETS[size]
    shapes = {name: leaf.shape for name, leaf in named_params(shape_only(drafter.Drafter, config, "bfloat16")).items()}
    buffers = [name for name in shapes if name.endswith(("layer_scalar", "token_ordering"))]
    assert sum(math.prod(shapes.pop(name)) for name in buffers) == 4 + config.use_ordered_embeddings * 262_144
    assert sum(map(math.prod, shapes.values())) == PUBLISHED[size]


@pytest.mark.parametrize("target", drafter.PRESETS)
@pytest.mark.parametrize("ours", drafter.PRESETS)
def test_presets_fit_their_own_target_and_no_other(ours, target):
    check = lambda: drafter.PRESETS[ours].check_fits(gemma4.PRESETS[target])
    if ours == target:
        return check()
    with pytest.raises(ValueError, match="do not fit"):
        check()
