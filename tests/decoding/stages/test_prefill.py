"""Stage 0: prompts of different lengths in one cache, chunk by chunk; the sizes of that cache; what a prefill refuses."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import decoding.stages.prefill
import gemma4
from decoding import Options, Sampling
from decoding.options import MAX_DRAFT_LENGTH
from decoding.state import DecodeState
from tests.models import TINY, random_target, random_tokens, small_target


def prompt_of(length: int) -> list[int]:
    return random_tokens(1, length)[0].tolist()


def check_hidden(state: DecodeState, target: gemma4.Gemma4, prompts: list[list[int]]) -> None:
    """Each row's hidden state is that of its prompt's last token in one forward over the prompt alone, padded on the right."""
    padded = np.zeros((len(prompts), max(map(len, prompts))), int)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    out = gemma4.forward(target, padded)
    for row, prompt in enumerate(prompts):
        expected = np.asarray(out.hidden[row, len(prompt) - 1])
        np.testing.assert_allclose(state.hidden[row], expected, atol=2e-5 * np.abs(expected).max())
        assert state.token[row] == out.logits[row, len(prompt) - 1].argmax(), "greedy"


def test_the_state_after_a_prefill():
    target, prompts = small_target(), [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8], [3]]
    state = decoding.prefill(target, prompts, Options(3), max_new_tokens=5)
    check_hidden(state, target, prompts)
    assert state.cache.length.tolist() == [3, 7, 1], "the first token is not in the cache yet"
    assert (state.emitted.tolist(), state.budget.tolist(), state.done.tolist()) == ([1] * 3, [5] * 3, [False] * 3)
    tokens = state.token.tolist()
    last = decoding.Round([[0] * 3] * 3, [0] * 3, [[token, 0, 0, 0] for token in tokens], [1] * 3)
    assert jax.tree.map(np.ndarray.tolist, jax.device_get(state.last)) == last, "a round that drafted nothing"


@pytest.mark.parametrize("settings", [{"max_new_tokens": 1}, {"max_new_tokens": 5, "eos_id": True}], ids=str)
def test_a_text_may_end_with_its_first_token(settings):
    """At the end of the budget, or with an EOS."""
    target, max_new_tokens = small_target(), settings["max_new_tokens"]
    first = int(decoding.prefill(target, [2, 9, 4], max_new_tokens=5).token[0])
    options = Options(eos_ids=(first,) if "eos_id" in settings else ())
    state = decoding.prefill(target, [2, 9, 4], options, max_new_tokens=max_new_tokens)
    assert state.done.all() and state.token.tolist() == [first] and state.emitted.tolist() == [1]


def test_a_sampled_first_token_follows_its_key():
    prefill = functools.partial(
        decoding.prefill, small_target(), [[2, 9, 4]] * 64, Options(sampling=Sampling(2.0)), max_new_tokens=5
    )
    first, again, other = (prefill(key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert first.token.tolist() == again.token.tolist() != other.token.tolist()
    assert len(set(first.token.tolist())) > 4, "rows draw independently"
    assert (jax.random.key_data(first.key) != jax.random.key_data(jax.random.key(1))).any(), "a key is used once"


def test_no_key_is_key_0():
    prefill = functools.partial(decoding.prefill, small_target(), [2, 9, 4], max_new_tokens=5)
    np.testing.assert_array_equal(*(jax.random.key_data(prefill(key=key).key) for key in (None, jax.random.key(0))))


def shapes_after(prompt_length: int):
    """Of the cache."""
    target, prompt = random_target(TINY["E2B"]), prompt_of(prompt_length)
    return jax.tree.map(jnp.shape, jax.eval_shape(lambda: decoding.prefill(target, prompt, max_new_tokens=4)).cache)


def test_prompts_of_like_lengths_share_what_is_compiled():
    """A round is compiled for the size of the cache, which follows from the prompt's."""
    of_length = functools.cache(shapes_after)
    assert of_length(1) == of_length(17) == of_length(32) != of_length(33) == of_length(50)


def test_the_cache_has_room_for_the_longest_draft_whatever_the_options():
    """Otherwise a longer one would be written over the first tokens of a text that fills its cache."""
    target, prompt, new_tokens = random_target(TINY["E2B"]), 16 * [2], 108
    state = jax.eval_shape(lambda: decoding.prefill(target, prompt, max_new_tokens=new_tokens))
    full = state.cache.layers[target.config.donors["full_attention"]]
    assert full.capacity >= len(prompt) + new_tokens + MAX_DRAFT_LENGTH
    with pytest.raises(ValueError, match="draft_length: expected 0 to 32 tokens a round, got 33"):
        decoding.Options(33)


def test_pads_of_the_last_chunk_do_not_reach_the_first_tokens(monkeypatch):
    """After the longest prompt there is room for a chunk, even if a single token is to follow."""
    monkeypatch.setattr(decoding.stages.prefill, "MAX_CHUNK", 256)
    target = random_target(dataclasses.replace(TINY["E2B"], max_position_embeddings=512))
    prompts = [prompt_of(257), prompt_of(3)]
    check_hidden(decoding.prefill(target, prompts, max_new_tokens=1), target, prompts)


@pytest.mark.parametrize("prompts", [[], [[]], [[64]], [[-1]], [[2, 5, 7] * 50]], ids=lambda rows: repr(rows)[:9])
def test_bad_prompts(prompts):
    """A row of pads, or the embedding of another token, would give a first token without an error."""
    with pytest.raises(ValueError, match="prompt|token id"):
        decoding.prefill(random_target(TINY["12B"]), prompts, max_new_tokens=8)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"key": jnp.zeros(3)}, r"key: expected jax.random.key\(seed\), or an array of 1 such keys, .*, got Array"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"max_new_tokens": "4"}, "max_new_tokens: expected a whole number, got '4'"),
        ({"max_new_tokens": None}, "max_new_tokens: expected a whole number, got None"),
    ],
)
def test_bad_settings(settings, message):
    prefill = inspect.unwrap(decoding.prefill)  # without the annotations, which are checked in tests alone
    with pytest.raises(ValueError, match=message):
        prefill(small_target(), [2, 3], **{"max_new_tokens": 4, **settings})


def test_a_target_that_overflows():
    """Its logits are NaN, and their argmax would be a token like any other."""
    target = random_target(TINY["E2B"], dtype=jnp.float16)
    target.layers[0].post_attention_layernorm.weight[...] *= jnp.float16(6e4)
    with pytest.raises(
        ValueError,
        match="layers.0.post_attention_layernorm.weight holds .* inf at .* load the target as float32 or bfloat16",
    ):
        decoding.prefill(target, [2, 3], max_new_tokens=4)
