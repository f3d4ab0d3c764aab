"""The models that `bench` measures: scaled layouts, random weights, twins, prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.bench import subject as subjects
from decoding.bench.subject import LAYOUTS, from_preset, prompts, random_weights, shrunk
from decoding.options import Options
from decoding.round import speculative_step
from decoding.stages.prefill import prefill
from drafter import Drafter
from drafter.fast import FastDrafter
from gemma4 import PRESETS, Gemma4
from gemma4.checkpoints.params import linear_weights, named_params, shape_only
from gemma4.config import FULL, SLIDING
from gemma4.fast.target import FastGemma4
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import TINY, TINY_DRAFTERS, small_subject

RELEASED = list(PRESETS)

KEPT = (
    "layer_types",
    "num_attention_heads",
    "num_key_value_heads",
    "num_global_key_value_heads",
    "attention_k_eq_v",
    "num_kv_shared_layers",
    "use_double_wide_mlp",
    "sliding_window",
    "num_experts",
    "top_k_experts",
    "max_position_embeddings",
)
NARROWED = ("hidden_size", "intermediate_size", "head_dim", "global_head_dim", "vocab_size")


@pytest.mark.parametrize("scale", [0.02, 0.3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_shrunk(name, scale):
    """Layers, heads, experts and windows stay; widths are multiplied, up to the next multiple; the pair still fits."""
    full = LAYOUTS[name]
    target, draft_model = shrunk(*full, scale)
    draft_model.check_fits(target)
    for ours, theirs in ((target, full[0]), (draft_model.text, full[1].text)):
        for field in KEPT:
            assert getattr(ours, field) == getattr(theirs, field), field
        for field in NARROWED:
            wanted = getattr(theirs, field) * scale
            multiple = draft_model.num_centroids if field == "vocab_size" else 64
            assert wanted <= getattr(ours, field) < wanted + multiple, field
        for field in ("moe_intermediate_size", "hidden_size_per_layer_input"):
            assert bool(getattr(ours, field)) == bool(getattr(theirs, field)), field
    kept = ("use_ordered_embeddings", "num_centroids", "centroid_intermediate_top_k", "convention")
    assert all(getattr(draft_model, field) == getattr(full[1], field) for field in kept)


@pytest.mark.parametrize("name", [RELEASED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in RELEASED[1:])])
def test_round_of_a_shrunk_layout(name, monkeypatch):
    """One round at scale 0.02.  Two or three layers are enough, because layers of one type are alike."""
    target, drafts = LAYOUTS[name]
    shared = target.num_kv_shared_layers > 0
    few = {"layer_types": (SLIDING, FULL) + shared * (FULL,), "num_kv_shared_layers": int(shared)}
    text = dataclasses.replace(drafts.text, layer_types=(SLIDING, FULL), num_kv_shared_layers=2)
    monkeypatch.setitem(LAYOUTS, name, (dataclasses.replace(target, **few), dataclasses.replace(drafts, text=text)))
    subject = from_preset(name, 0.02, "float32")
    assert subject.name == f"{name}, random weights, widths times 0.02" and subject.texts == []
    subject.draft_model.config.check_fits(subject.target.config)
    prompt, options = prompts(subject, 1, 5), Options(1)
    one_round = lambda target, draft_model: speculative_step(
        target, draft_model, prefill(target, prompt, options, max_new_tokens=9), options
    )
    if name not in ("E2B", "26B-A4B"):  # these two take all branches of the others, which are only traced
        shapes = jax.eval_shape(one_round, subject.target, subject.draft_model)
        assert shapes.hidden.shape == (1, subject.target.config.hidden_size)
        return
    state = one_round(subject.target, subject.draft_model)
    assert 1 <= int(state.last.num_emitted[0]) <= 2 and np.isfinite(state.hidden).all()


def test_fifty_million():
    target, draft_model = LAYOUTS["50M"]
    draft_model.check_fits(target)
    size = sum(leaf.size for leaf in jax.tree.leaves(shape_only(Gemma4, target, "float32")))
    assert 48e6 < size < 52e6
    assert sum(leaf.size for leaf in jax.tree.leaves(shape_only(Drafter, draft_model, "float32"))) < size / 10


@pytest.mark.parametrize(
    "build, config, dtype",
    [(Gemma4, TINY["26B-A4B"], "float32"), (Drafter, TINY_DRAFTERS["E2B"], "bfloat16")],
    ids=["target", "drafter"],
)
def test_random_weights(build, config, dtype):
    """Every leaf has its shape and dtype; norms and scales are 1, matrices have deviation 1/sqrt(inputs), no two alike."""
    blank = shape_only(build, config, dtype)
    filled = random_weights(blank, seed=0)
    params, linear, seen = named_params(filled), linear_weights(blank), set()
    assert jax.tree.structure(filled) == jax.tree.structure(blank)
    for name, leaf in named_params(blank).items():
        value = params[name]
        assert (value.shape, value.dtype) == (leaf.shape, leaf.dtype), name
        if name.endswith("token_ordering"):
            np.testing.assert_array_equal(np.sort(value), np.arange(leaf.size))
            assert (value != np.arange(leaf.size)).any()
        elif leaf.ndim == 1:
            assert (value == 1).all(), name
        else:
            inputs = leaf.shape[0] if name in linear else leaf.shape[-1]
            assert float(value.astype(jnp.float32).std() * inputs**0.5) == pytest.approx(1, abs=0.15), name
            seen.add(np.asarray(value).tobytes())
    assert len(seen) == sum(leaf.ndim > 1 for leaf in params.values())
    assert isinstance(filled, nnx.Module)


def test_prompts():
    """Drawn at random where there is no text, else the beginnings of the texts in order; ragged over as many as asked."""
    subject = small_subject()
    drawn = prompts(subject, 5, 32, ragged=4)
    assert [len(prompt) for prompt in drawn] == [32, 30, 28, 26, 32]
    assert all(3 <= token < VOCAB for prompt in drawn for token in prompt)
    assert drawn == prompts(subject, 5, 32, ragged=4) and drawn[0] != drawn[4]
    with_texts = subject._replace(texts=[list(range(100)), list(range(100, 200))])
    assert prompts(with_texts, 3, 16, ragged=3) == [list(range(16)), list(range(100, 115)), list(range(14))]
    assert prompts(with_texts, 3, 2) == [[0, 1], [100, 101], [0, 1]]


def test_twins_of_a_subject():
    """They share the weights; the subject itself keeps its models as loaded."""
    subject = small_subject()
    twins = subject.for_backend()
    assert isinstance(twins.target, FastGemma4) and isinstance(twins.draft_model, FastDrafter)
    assert (type(subject.target), type(subject.draft_model)) == (Gemma4, Drafter)
    assert (twins.name, twins.texts) == (subject.name, subject.texts)
    for plain, twin in zip(subject[1:3], twins[1:3], strict=True):
        params = named_params(twin)
        assert all(params[name] is value for name, value in named_params(plain).items())


def test_held_out_text_begins_with_bos():
    """The shipped pair's own text, by its tokenizer."""
    pair = decoding.load_pair()
    texts = subjects.held_out(pair.tokenizer, pair.target.config)
    assert len(texts) > 1 and {text[0] for text in texts} == {pair.target.config.bos_token_id}
    assert max(map(max, texts)) < pair.target.config.vocab_size and min(map(len, texts)) > 100
