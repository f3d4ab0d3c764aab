"""Prompts as users give them: many forms of token ids, and one clear error for anything else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.prompts import unpadded, validate_key, validate_prompts
from tests.models import TINY

CONFIG = TINY["12B"]
CONTEXT = CONFIG.max_position_embeddings
PROMPT = [2, 5, 7]


@pytest.mark.parametrize(
    "prompt",
    ["257", b"ab", {2, 5}, {2: 5}, [[2, 5], 3], [[[2]]], np.zeros((1, 1, 1), int), np.int32(3), 5, None],
    ids=repr,
)
def test_no_prompt(prompt):
    with pytest.raises(ValueError, match="prompt_tokens: expected the token ids of a prompt"):
        validate_prompts(CONFIG, prompt, 1)


@pytest.mark.parametrize(
    "prompt", [[2.0, 5.0], [True, False], ["2", "5"], [2**70], [float("nan")], np.array([2.0])], ids=repr
)
def test_no_token_ids(prompt):
    for given, name in ((prompt, "the prompt"), ([PROMPT, prompt], "prompt 1")):
        with pytest.raises(ValueError, match=f"{name}: expected token ids, whole numbers, got"):
            validate_prompts(CONFIG, given, 1)


@pytest.mark.parametrize(
    "prompts, max_new_tokens, message",
    [
        ([], 1, "the prompt is empty: expected at least one token"),
        ([PROMPT, []], 1, "prompt 1 is empty: expected at least one token"),
        ([64], 1, r"token id 64 is out of range: this model's vocabulary is 0\.\.63"),
        ([-1], 1, r"token id -1 is out of range: this model's vocabulary is 0\.\.63"),
        (PROMPT, CONTEXT - 2, "the prompt has 3 tokens, and 126 new ones .* at most 125 new tokens"),
        ([PROMPT, PROMPT * 20], 80, "prompt 1 has 60 tokens, and 80 new ones .* at most 68 new tokens"),
        (PROMPT * 50, 64, "the prompt has 150 tokens, .* context of 128: shorten the prompt$"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_prompts_that_the_target_cannot_continue(prompts, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        validate_prompts(CONFIG, prompts, max_new_tokens)


@pytest.mark.parametrize(
    "prompt",
    [(2, 5, 7), range(3), np.array(PROMPT, np.uint8), jnp.array(PROMPT), [np.int64(2), 5], [jnp.int32(2), 5]],
    ids=repr,
)
def test_prompts_in_many_forms(prompt):
    expected = list(map(int, prompt))
    assert validate_prompts(CONFIG, prompt, 1) == [expected]
    assert validate_prompts(CONFIG, [prompt, [3]], 1) == [expected, [3]]
    assert validate_prompts(CONFIG, jnp.array([expected, expected]), 1) == [expected, expected]


def test_a_prompt_and_its_new_tokens_may_fill_the_context():
    assert validate_prompts(CONFIG, PROMPT, CONTEXT - len(PROMPT)) == [PROMPT]


@pytest.mark.parametrize("key, got", [(0, "0"), ("a", "'a'"), (jnp.zeros(3), "Array")], ids=str)
def test_no_key(key, got):
    with pytest.raises(
        ValueError, match=rf"key: expected jax.random.key\(seed\), or an array of 1 such keys, .*got {got}"
    ):
        validate_key(key, 1)


def test_keys():
    """None is key 0; keys of the older kind are keys, too."""
    np.testing.assert_array_equal(jax.random.key_data(validate_key(None, 1)), jax.random.key_data(jax.random.key(0)))
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        assert validate_key(key, 1) is key


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(side):
    rows = [[5, 6, 7], [8], [9, 3]]
    pads = [[0] * (3 - len(row)) for row in rows]
    ids = np.array([pad + row if side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)])
    found = unpadded(ids, (ids != 0).astype(int))
    assert [row.tolist() for row in found] == rows
    assert unpadded(ids[1], ids[1] != 0).tolist() == [8]
    assert unpadded(rows, None) is rows


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1]], r"expected 0 or 1 for each id .* got ids of shape \(1, 4\) and a mask of shape \(1, 2\)"),
        ([[0, 1, 2, 1]], "expected 0 or 1 for each id"),
        ([[1, 0, 1, 1]], "row 0: expected padding at an end, got some between tokens"),
    ],
)
def test_bad_masks(mask, message):
    with pytest.raises(ValueError, match=f"attention_mask: {message}"):
        unpadded([[4, 5, 6, 7]], mask)


def test_a_key_for_each_row():
    keys = jax.random.split(jax.random.key(0), 3)
    assert validate_key(keys, 3) is keys
    with pytest.raises(ValueError, match="an array of 2 such keys, one for each row"):
        validate_key(keys, 2)
