"""The recipe, in small: every stage from text to a pair that loads and generates; and the shape of its curve."""

import dataclasses
import json

import numpy as np
import pytest

import decoding
from decoding.pairs import corpus
from decoding.pairs.recipe import Recipe, run, smoke_recipe
from gemma4.config import interleave

pytestmark = pytest.mark.usefixtures("quick_compile")


def shallow(recipe: Recipe) -> Recipe:
    """The same with four target layers, two drafter layers and two draft steps: compiling takes nearly all the time.

    Fewer are none of this layout: each type needs a layer that owns K/V and one that shares it.
    """
    target = dataclasses.replace(recipe.target, layer_types=interleave(1, 4), num_kv_shared_layers=2)
    text = dataclasses.replace(recipe.drafter.text, layer_types=interleave(1, 2), num_kv_shared_layers=2)
    return recipe._replace(target=target, drafter=dataclasses.replace(recipe.drafter, text=text), unroll=2)


def test_smoke_run_learns_resumes_and_ships(tmp_path):
    recipe = shallow(smoke_recipe())
    run(recipe._replace(target_steps=30), tmp_path, chapters=20)
    log = [json.loads(line) for line in (tmp_path / "pair" / "training_log.jsonl").read_text().splitlines()]
    assert [entry["run"] for entry in log] == ["target", "drafter-1", "drafter"]
    first = log[0]["held_out_bits_per_byte"]

    run(recipe, tmp_path, chapters=20)  # goes on from the target's checkpoint at step 30
    log = [json.loads(line) for line in (tmp_path / "target" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [30, 60]
    assert log[1]["held_out_bits_per_byte"] < first < 8

    target, drafter, tokenizer = decoding.load_pair(tmp_path / "pair" / "target", tmp_path / "pair" / "drafter")
    prompt = [corpus.BOS, *tokenizer.encode("In the beginning").ids]
    fast = decoding.generate(target, drafter, prompt, max_new_tokens=24)
    slow = decoding.generate_autoregressive(target, prompt, max_new_tokens=24)
    np.testing.assert_array_equal(fast.tokens[0], slow.tokens[0])
