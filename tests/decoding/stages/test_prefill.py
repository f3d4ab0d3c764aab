"""A prefill runs what writes no K/V for one token a row, and leaves the same hidden row and the same cache.  Its settings."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding import Sampling
from decoding.options import MAX_DRAFT_LENGTH
from gemma4 import init_cache
from tests.models import TINY, TINY_DRAFTERS, WINDOW, random_drafter, random_target, random_tokens

TIME = 2 * WINDOW + 3
LAST = np.array([0, TIME - 1, WINDOW])  # the row of each prompt that is wanted


@pytest.mark.parametrize("layout", list(TINY))
def test_only_one_row(layout):
    config = TINY[layout]
    target, tokens = random_target(config), random_tokens(len(LAST), TIME)
    cache = init_cache(config, len(LAST), 2 * TIME)
    rows, expected_cache = jax.jit(lambda *args: target(*args))(tokens, cache)
    only, cache = jax.jit(lambda *args: target(*args, only=jnp.asarray(LAST)))(tokens, cache)
    expected = np.asarray(rows)[np.arange(len(LAST)), LAST]
    assert only.shape == (len(LAST), 1, config.hidden_size)
    np.testing.assert_allclose(only[:, 0], expected, atol=2e-5 * np.abs(expected).max())
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5)
    jax.tree.map(close, cache, expected_cache)


@pytest.mark.parametrize("layout", ["E2B", "31B"])
def test_what_writes_no_kv_runs_for_that_row_alone(layout):
    """The last owner of K/V writes them for all tokens, and asks for one; layers behind it see that one only."""
    config, times = TINY[layout], {}

    def tap(name, value):
        times[name] = value.shape[1]
        return value

    target, tokens, cache = random_target(config), random_tokens(len(LAST), TIME), init_cache(config, len(LAST), TIME)
    jax.eval_shape(lambda: target(jnp.asarray(tokens), cache, tap, only=jnp.asarray(LAST)))
    last_owner = config.num_hidden_layers - config.num_kv_shared_layers - 1
    expected = [TIME if layer < last_owner else 1 for layer in range(config.num_hidden_layers)]
    for point in ("query", "output"):
        assert [times[f"layers.{layer}.{point}"] for layer in range(config.num_hidden_layers)] == expected
    assert times["hidden"] == 1


def cache_after(prompt_length: int, **settings):
    target = random_target(TINY["E2B"])
    prompt = random_tokens(1, prompt_length)[0].tolist()
    return decoding.prefill(target, prompt, max_new_tokens=4, **settings).cache


def test_prompts_of_like_lengths_share_what_is_compiled():
    """A round is compiled for the size of the cache, and that follows from the prompt's: five sizes up to 256 tokens."""
    of_length = functools.cache(lambda length: jax.tree.map(jnp.shape, cache_after(length)))
    assert of_length(17) == of_length(25) == of_length(32) != of_length(33) == of_length(50)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"draft_length": -1}, "draft_length: expected 0 to 32 tokens a round, got -1"),
        ({"sampling": Sampling(-1.0)}, "temperature: expected a number from 0 .greedy. up"),
        ({"eos_ids": [-1]}, "eos_ids: expected token ids from 0 up"),
        ({"key": jnp.zeros(3)}, r"key: expected jax.random.key\(seed\), got Array"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        cache_after(3, **settings)


def test_settings_may_be_left_to_the_prefill():
    assert jax.tree.all(jax.tree.map(np.array_equal, cache_after(3, eos_ids=[1, 2]), cache_after(3, eos_ids=(1, 2))))


def test_there_is_room_for_the_longest_draft_whatever_was_said():
    """Or a longer one would be written over the first tokens of a text that fills its cache."""
    target, prompt, new_tokens = random_target(TINY["E2B"]), 16 * [2], 108
    state = decoding.prefill(target, prompt, max_new_tokens=new_tokens)
    full = state.cache.layers[target.config.donors["full_attention"]]
    assert full.capacity >= len(prompt) + new_tokens + MAX_DRAFT_LENGTH
    with pytest.raises(ValueError, match="draft_length: expected at most 32 tokens a round, got 33"):
        decoding.speculative_step(target, random_drafter(TINY_DRAFTERS["E2B"]), state, decoding.Options(33))


def test_pads_of_the_last_chunk_do_not_reach_the_first_tokens(monkeypatch):
    """Behind the last token of the longest prompt there is room for a chunk, though one token alone is to follow."""
    monkeypatch.setattr(sys.modules["decoding.stages.prefill"], "LONGEST_CHUNK", 256)
    target = random_target(dataclasses.replace(TINY["E2B"], max_position_embeddings=512))
    prompts = [random_tokens(1, length)[0].tolist() for length in (257, 3)]
    state = decoding.prefill(target, prompts, max_new_tokens=1)
    for row, prompt in enumerate(prompts):
        expected = target(jnp.asarray([prompt]))[0][0, -1]
        np.testing.assert_allclose(state.hidden[row], expected, atol=2e-5 * np.abs(expected).max())


def test_a_target_that_overflows():
    """Its logits are NaN, and their argmax would be a token like any other."""
    target = random_target(TINY["E2B"], dtype=jnp.float16)
    target.layers[0].post_attention_layernorm.weight[...] *= jnp.float16(6e4)
    with pytest.raises(ValueError, match="not finite in float16: .* load it as float32 or bfloat16"):
        decoding.prefill(target, [2, 3], max_new_tokens=4)
