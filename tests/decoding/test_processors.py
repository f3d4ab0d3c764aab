"""Logits processors: what each does, and that a text with them is the target's own, with a drafter and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import gemma4
from decoding import Options, Sampling
from decoding.generation import LOOPS
from decoding.processors import (
    FrequencyPenalty,
    MinP,
    RepetitionPenalty,
    as_processors,
    count_tokens,
    logit_bias,
    process,
)
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import small_drafter, small_target

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]
LOGITS = np.float32([2.0, -1.0, 0.5, 0.0, -3.0])
COUNTS = np.int32([0, 1, 3, 1, 0])


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (MinP(0.2), [2.0, -np.inf, 0.5, -np.inf, -np.inf]),  # exp(-1.5) is more than 0.2, exp(-2) is less
        (RepetitionPenalty(2.0), [2.0, -2.0, 0.25, 0.0, -3.0]),
        (FrequencyPenalty(0.5), [2.0, -1.5, -1.0, -0.5, -3.0]),
        (FrequencyPenalty(0.5, presence=1.0), [2.0, -2.5, -2.0, -1.5, -3.0]),
        (logit_bias({4: 9.0, 0: -np.inf}), [-np.inf, -1.0, 0.5, 0.0, 6.0]),
    ],
    ids=str,
)
def test_by_hand(processor, expected):
    np.testing.assert_allclose(processor(jnp.asarray(LOGITS), jnp.asarray(COUNTS)), np.float32(expected), atol=1e-6)


def test_each_position_has_the_counts_of_the_tokens_before_it():
    """Drafts before a position count, later ones and the other row's do not; several processors apply in order."""
    rng = np.random.default_rng(0)
    logits, counts = rng.normal(size=(2, 4, 5)).astype(np.float32), rng.integers(0, 3, (2, 5)).astype(np.int32)
    drafts = np.int32([[1, 1, 4], [0, 2, 2]])
    seen = []
    record = lambda logits, counts: (seen.append(counts), logits + counts)[1]
    double = lambda logits, counts: 2 * logits
    out = process(jnp.asarray(logits), jnp.asarray(drafts), jnp.asarray(counts), (record, double))
    for row in range(2):
        for t in range(4):
            expected = counts[row] + np.bincount(drafts[row, :t], minlength=5)
            np.testing.assert_array_equal(seen[0][row, t], expected)
            np.testing.assert_allclose(out[row, t], 2 * (logits[row, t] + expected), rtol=1e-6)
    after = count_tokens(jnp.asarray(counts), jnp.asarray(drafts), jnp.array([2, 0]))
    np.testing.assert_array_equal(after, counts + [[0, 2, 0, 0, 0], [0] * 5])
    assert process(jnp.asarray(logits), jnp.asarray(drafts), None, ()) is not None
    assert count_tokens(None, jnp.asarray(drafts), jnp.array([2, 0])) is None


SOME = (RepetitionPenalty(1.7), FrequencyPenalty(0.6, 0.2), logit_bias({3: 0.5, 5: -1.0}))


forward = jax.jit(lambda target, tokens: gemma4.forward(target, tokens).logits)


def greedy_text_by_hand(prompt: list[int], length: int) -> list[int]:
    target, text = small_target(), list(prompt)
    for _ in range(length):
        padded = text + [0] * (len(prompt) + length - len(text))  # one program for all lengths
        logits = forward(target, jnp.array([padded]))[0, len(text) - 1]
        counts = jnp.asarray(np.bincount(text, minlength=VOCAB))
        for processor in SOME:
            logits = processor(logits, counts)
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("loop", LOOPS)
def test_greedy_text_is_the_processed_argmax_after_every_token(loop):
    settings = {"max_new_tokens": 24, "processors": SOME, "loop": loop}
    alone = decoding.generate_autoregressive(small_target(), PROMPTS, **settings).tokens
    drafted = decoding.generate(small_target(), small_drafter(5), PROMPTS, draft_length=3, **settings).tokens
    expected = [greedy_text_by_hand(prompt, 24) for prompt in PROMPTS]
    assert [text.tolist() for text in alone] == [text.tolist() for text in drafted] == expected
    plain = decoding.generate_autoregressive(small_target(), PROMPTS, max_new_tokens=24, loop=loop).tokens
    assert [text.tolist() for text in plain] != expected


def test_sampled_text_has_only_what_a_processor_leaves():
    """By both rules of acceptance, with drafts that the processor forbids."""
    never = {token: -np.inf for token in range(0, VOCAB, 2)}
    for acceptance in ("token", "block"):
        settings = {"sampling": Sampling(2.0), "acceptance": acceptance, "draft_length": 3, "max_new_tokens": 40}
        out = decoding.generate(small_target(), small_drafter(), PROMPTS, **settings, processors=[logit_bias(never)])
        assert not {int(token) for text in out.tokens for token in text} & never.keys()
        assert out.stats.emitted == 80


def test_other_values_compile_nothing():
    options = [Options(0, processors=(RepetitionPenalty(p), logit_bias({1: p}))) for p in (1.1, 1.9)]
    assert len({jax.tree.structure(option) for option in options}) == 1


@pytest.mark.parametrize("processors", ["min_p", [MinP(0.1), 3], 5])
def test_what_is_not_a_function_is_refused(processors):
    with pytest.raises(ValueError, match=r"processors: expected functions \(logits, counts\) -> logits, got"):
        as_processors(processors)
