"""What `decoding`'s calls refuse, before anything runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import gemma4
from decoding.options import MAX_DRAFT_LENGTH
from decoding.prompts import (
    check_acceptance,
    check_draft_length,
    check_eos_ids,
    check_max_new_tokens,
    check_model,
    check_sampling,
    check_threads,
    validate_key,
    validate_prompts,
)
from tests.models import TINY, drafter_config, random_drafter, random_target

CONTEXT = TINY["12B"].max_position_embeddings
PROMPT = [2, 5, 7]


@pytest.fixture(scope="module")
def pair():
    target = random_target(TINY["12B"])
    return target, random_drafter(drafter_config(target.config, clustered=False))


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (PROMPT, {"draft_length": 0}, "draft_length: expected 1 to 32 tokens a round, got 0"),
        (PROMPT, {"draft_length": MAX_DRAFT_LENGTH + 1}, "draft_length: expected 1 to 32 tokens a round, got 33"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (
            PROMPT,
            {"max_new_tokens": CONTEXT - 2},
            "the prompt has 3 tokens, and 126 new ones .* at most 125 new tokens",
        ),
        ([PROMPT, PROMPT * 20], {"max_new_tokens": 80}, "prompt 1 has 60 tokens, and 80 new ones .* at most 68 new"),
        ([], {}, "the prompt is empty: expected at least one token"),
        ([PROMPT, []], {}, "prompt 1 is empty: expected at least one token"),
        (PROMPT * 50, {}, "the prompt has 150 tokens, .* context of 128: shorten the prompt$"),
        ([64], {}, r"token id 64 is out of range: this model's vocabulary is 0\.\.63"),
        ([-1], {}, r"token id -1 is out of range: this model's vocabulary is 0\.\.63"),
        (
            PROMPT,
            {"sampling": decoding.Sampling(-1.0)},
            "temperature: expected a number from 0 .greedy. up, got -1",
        ),
        (
            PROMPT,
            {"sampling": decoding.Sampling(1.0, top_p=0.0)},
            "top_p: expected a share of probability from 1e-30 to 1",
        ),
        (PROMPT, {"draft_sampling": decoding.Sampling(1.0, top_k=-1)}, "top_k: expected a number of tokens"),
        (PROMPT, {"threads": 2}, "threads: 2 of them run all rounds on the device alone; give on_device=True, or one"),
        (PROMPT, {"threads": 0}, "threads: expected at least 1, got 0"),
        (PROMPT, {"acceptance": "blocks"}, "acceptance: expected 'token' or 'block', got 'blocks'"),
    ],
)
def test_generate(pair, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        decoding.generate(*pair, prompt, **settings)
    if not {"draft_length", "draft_sampling", "acceptance"} & settings.keys():
        with pytest.raises(ValueError, match=message):
            decoding.generate_autoregressive(pair[0], prompt, **settings)


@pytest.mark.parametrize("prompts", [[], [[]], [[64]], [[-1]], [PROMPT * 50]], ids=lambda rows: repr(rows)[:9])
def test_prefill_by_itself(pair, prompts):
    """A row of pads, or another token's embedding, would give a first token, and no complaint."""
    with pytest.raises(ValueError, match="prompt|token id"):
        decoding.prefill(pair[0], prompts, max_new_tokens=8, key=jax.random.key(0))


@pytest.mark.parametrize(
    "prompt",
    ["257", b"ab", {2, 5}, {2: 5}, [[2, 5], 3], [[[2]]], np.zeros((1, 1, 1), int), np.int32(3), 5, None],
    ids=repr,
)
def test_what_is_no_prompt(pair, prompt):
    with pytest.raises(ValueError, match="prompt_tokens: expected the token ids of a prompt"):
        validate_prompts(pair[0], prompt, 1)


@pytest.mark.parametrize(
    "prompt", [[2.0, 5.0], [True, False], ["2", "5"], [2**70], [float("nan")], np.array([2.0])], ids=repr
)
def test_what_are_no_token_ids(pair, prompt):
    for given, name in ((prompt, "the prompt"), ([PROMPT, prompt], "prompt 1")):
        with pytest.raises(ValueError, match=f"{name}: expected token ids, whole numbers, got"):
            validate_prompts(pair[0], given, 1)


@pytest.mark.parametrize(
    "prompt",
    [(2, 5, 7), range(3), np.array(PROMPT, np.uint8), jnp.array(PROMPT), [np.int64(2), 5], [jnp.int32(2), 5]],
    ids=repr,
)
def test_prompts_in_many_forms(pair, prompt):
    expected = list(map(int, prompt))
    assert validate_prompts(pair[0], prompt, 1) == [expected]
    assert validate_prompts(pair[0], [prompt, [3]], 1) == [expected, [3]]
    assert validate_prompts(pair[0], jnp.array([expected, expected]), 1) == [expected, expected]


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (check_draft_length, 2.0, "draft_length: expected a whole number, got 2.0"),
        (
            lambda threads: check_threads(threads, random_target(TINY["12B"]), True),
            2.0,
            "threads: expected a whole number, got 2.0",
        ),
        (check_max_new_tokens, "4", "max_new_tokens: expected a whole number, got '4'"),
        (check_max_new_tokens, None, "max_new_tokens: expected a whole number, got None"),
        (check_eos_ids, 5, r"eos_ids: expected token ids, such as \(1, 106\), got 5"),
        (check_eos_ids, "1", "eos_ids: expected token ids"),
        (check_eos_ids, [5.5], "eos_ids: expected token ids"),
        (check_eos_ids, [2**31], "eos_ids: expected token ids from 0 up"),
        (check_eos_ids, [-1], "eos_ids: expected token ids from 0 up"),
        (validate_key, 0, r"key: expected jax.random.key\(seed\), got 0"),
        (validate_key, "a", "key: expected jax.random.key"),
        (check_sampling, 0.8, "sampling: expected decoding.Sampling.* got 0.8"),
        (check_sampling, decoding.Sampling("warm"), "sampling: expected numbers"),
        (check_sampling, decoding.Sampling(1.0, top_k=1.5), "sampling: expected numbers, for top_k a whole one"),
        (check_sampling, decoding.Sampling(1.0, top_k=jnp.inf), "sampling: expected numbers, for top_k a whole one"),
        (check_sampling, decoding.Sampling(float("nan")), "temperature: expected a number from 0 .greedy. up"),
        (check_acceptance, ["block"], "acceptance: expected 'token' or 'block', got .'block'."),
        (functools.partial(check_model, "target", kind=gemma4.Gemma4), "a/path", "target: expected a Gemma4"),
    ],
)
def test_settings_of_another_kind(check, value, message):
    with pytest.raises(ValueError, match=message):
        check(value)


def test_settings_become_pythons_numbers():
    assert check_draft_length(jnp.int32(3)) == 3 and check_eos_ids(jnp.array([5])) == (5,)
    sampling = check_sampling(decoding.Sampling(jnp.float32(0.5), np.int64(3), np.float32(1)))
    assert hash(sampling) == hash(decoding.Sampling(0.5, 3, 1.0))
    assert all(type(value) in (int, float) for value in (*sampling, check_draft_length(jnp.int32(3))))


def test_the_last_values_that_are_allowed(pair):
    assert check_draft_length(MAX_DRAFT_LENGTH) == MAX_DRAFT_LENGTH
    assert validate_prompts(pair[0], PROMPT, CONTEXT - len(PROMPT)) == [PROMPT]
    assert check_eos_ids([0, 2**31 - 1]) == (0, 2**31 - 1)


def test_no_key_is_key_0():
    np.testing.assert_array_equal(jax.random.key_data(validate_key(None)), jax.random.key_data(jax.random.key(0)))


def test_generate_with_the_drafter_of_another_target(pair):
    other = random_drafter(drafter_config(TINY["31B"], clustered=False))
    with pytest.raises(ValueError, match=r"drafter and target do not fit \(.*KV heads: drafter 8, target 2"):
        decoding.generate(pair[0], other, PROMPT)


def test_verify_of_another_batch_than_the_caches(pair):
    cache = gemma4.init_cache(pair[0].config, 1, 64)
    with pytest.raises(ValueError, match="the cache was built for batch 1, but tokens have batch 2"):
        decoding.verify(pair[0], cache, jnp.zeros(2, jnp.int32), jnp.zeros((2, 4), jnp.int32))


@pytest.mark.parametrize("is_jitted", [False, True])
def test_more_drafts_than_the_cache_takes_at_once(pair, is_jitted):
    cache = gemma4.init_cache(pair[0].config, 1, 64, chunk=4)
    verify = jax.jit(decoding.verify) if is_jitted else decoding.verify
    token, drafts = jnp.zeros(1, jnp.int32), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="5 tokens in one forward, but this cache takes at most 4 at a time"):
        verify(pair[0], cache, token, drafts)
