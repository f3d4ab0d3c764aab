"""Speculative greedy text is the target's greedy text, whatever is drafted, however texts and rounds end.

Every test runs the plain loop of `decoding/generation.py` and checks after the prefill and after every round, row by row, that
cache.length == prompt + emitted - 1.  float32; a difference is excused only where the two best logits are within 1e-4 of each
other, and counted (`tests/near_ties.py`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

import decoding
from decoding.oracle.script import BY_ITSELF
from drafter import Drafter
from gemma4 import Gemma4
from tests.models import SMALL_CONTEXT as CONTEXT
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import SMALL_WINDOW as WINDOW
from tests.models import small_drafter, small_target
from tests.scripted import generate_scripted, script_of

Prompts = list[list[int]]


class Pair(NamedTuple):
    target: Gemma4
    draft_model: Drafter
    batches: tuple[Prompts, Prompts]  # ragged; the first and the last row of the first batch run alone, too
    new_tokens: int  # at least three windows


def random_prompts(lengths: tuple[int, ...], seed: int) -> Prompts:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


@functools.cache
def small_pair() -> Pair:
    shorter = random_prompts((1, 4, WINDOW, 2 * WINDOW - 1), seed=1)
    longer = random_prompts((WINDOW + 1, 5, 2 * WINDOW + 1, 2), seed=2)
    return Pair(small_target(), small_drafter(), (shorter, longer), 3 * WINDOW + 4)


PAIRS = {"small": small_pair}  # another pair joins by one line

# What is drafted where the target has a given token: the drafter's own choice, never that token, always that token.
PROPOSALS: dict[str, Callable[[int, int], int]] = {
    "own": lambda index, token: BY_ITSELF,
    "adversarial": lambda index, token: (token + 1) % VOCAB,
    "perfect": lambda index, token: token,
}


def generate_alone(target: Gemma4, prompts, **settings) -> decoding.Generation:
    """The baseline: the target one token at a time."""
    return decoding.generate_autoregressive(target, prompts, loop="plain", **settings)


@functools.cache
def greedy_text(name: str, prompt: tuple[int, ...]) -> list[int]:
    """The reference: one token at a time, one prompt at a time."""
    pair = PAIRS[name]()
    out = decoding.generate_autoregressive(pair.target, prompt, max_new_tokens=pair.new_tokens, loop="plain")
    return out.tokens[0].tolist()


def greedy_texts(name: str, prompts: Prompts) -> list[list[int]]:
    return [greedy_text(name, tuple(prompt)) for prompt in prompts]


def generate(pair: Pair, script: np.ndarray, prompts: Prompts, **settings) -> decoding.Generation:
    """`generate_scripted`, with the invariants that always hold."""
    lengths, emitted = np.array([len(prompt) for prompt in prompts]), []

    def check(state: decoding.DecodeState) -> None:
        np.testing.assert_array_equal(state.cache.length, lengths + np.asarray(state.emitted) - 1)
        emitted.append(np.asarray(state.last.num_emitted))
        assert len(emitted) <= settings["max_new_tokens"], "a round emitted nothing"

    out = generate_scripted(pair.target, pair.draft_model, script, prompts, on_state=check, **settings)
    assert np.sum(emitted, axis=0).tolist() == [len(text) for text in out.tokens]
    assert out.stats.emitted == sum(len(text) for text in out.tokens)
    return out


@pytest.mark.parametrize(
    "gamma", [1, 4, 8, *(pytest.param(gamma, marks=pytest.mark.slow) for gamma in (2, 3, 5, 6, 7))]
)
@pytest.mark.parametrize("name", PAIRS)
def test_speculative_text_is_autoregressive_text(name, gamma, near_ties):
    """Batch 1 and ragged 4, the three kinds of proposals, past three windows, against the baseline in batches of one.

    No adversarial proposal is accepted; every perfect one is, so that there are as few rounds as possible.
    """
    pair = PAIRS[name]()
    for prompts in (*pair.batches, pair.batches[0][:1], pair.batches[0][-1:]):
        texts, excused = greedy_texts(name, prompts), near_ties.excused
        for kind, propose in PROPOSALS.items():
            script = script_of(prompts, texts, propose)
            out = generate(pair, script, prompts, draft_length=gamma, max_new_tokens=pair.new_tokens)
            for row, prompt in enumerate(prompts):
                what = f"{name}, gamma {gamma}, {kind} drafts, row {row} of {len(prompts)}"
                near_ties.compare(pair.target, prompt, out.tokens[row], texts[row], what)
            if near_ties.excused == excused and kind == "adversarial":
                assert out.stats.accepted == 0
            if near_ties.excused == excused and kind == "perfect":
                assert out.stats.rounds == len(prompts) * -(-(pair.new_tokens - 1) // (gamma + 1))


@pytest.mark.parametrize("name", PAIRS)
def test_autoregressive_rows_are_their_own_batch(name, near_ties):
    """The baseline's ragged batch against its batches of one."""
    pair = PAIRS[name]()
    for prompts in pair.batches:
        out = decoding.generate_autoregressive(pair.target, prompts, max_new_tokens=pair.new_tokens, loop="plain")
        for row, prompt in enumerate(prompts):
            near_ties.compare(
                pair.target, prompt, out.tokens[row], greedy_text(name, tuple(prompt)), f"{name}, row {row}"
            )


def test_the_texts_are_worth_comparing():
    """They vary, and hold token 0: in a prompt, in a text, and (when drafts are perfect) among accepted drafts."""
    prompts = sum(small_pair().batches, [])
    texts = greedy_texts("small", prompts)
    assert len(set(sum(texts, []))) > VOCAB / 2 and len({tuple(text) for text in texts}) == len(texts)
    assert sum(0 in prompt for prompt in prompts) and sum(0 in text[1:] for text in texts)


# -- where texts end ---------------------------------------------------------------------------------------------------

GAMMA = 4


class Ending(NamedTuple):
    prompt: list[int]
    text: list[int]
    index: int  # of the first EOS in the text
    eos: int


@functools.cache
def ending() -> Ending:
    """A text with a token that first occurs late enough for more than a whole round before it."""
    for prompt in random_prompts((3,) * 50, seed=3):
        text = greedy_text("small", tuple(prompt))
        firsts = [index for index, token in enumerate(text) if index >= GAMMA + 4 and token not in text[:index]]
        if firsts:
            return Ending(prompt, text, firsts[0], text[firsts[0]])
    raise AssertionError("no such text; take another seed")


def generate_ending(
    last: int, max_new_tokens: int, propose: Callable[[int, int], int] = PROPOSALS["perfect"]
) -> decoding.Generation:
    """Six rows of one prompt, in which token `last` of the text is emitted in six ways.

    Drafts of row r are wrong up to token last - 5 + r of the text, so that a round begins right after it, and right from there
    on.  So `last` is the bonus token after four drafts in row 0, and draft 5 - r in rows 1 to 4; in row 5 the draft at `last`
    itself is wrong, and the target's token is a correction.
    """
    this, last_wrong = ending(), [last - GAMMA - 1 + row for row in range(GAMMA + 2)]
    assert last_wrong[0] >= 1

    def script(last_wrong: int) -> np.ndarray:
        def proposal(index: int, token: int) -> int:
            return propose(index, token if index > last_wrong else (token + 1) % VOCAB)

        return script_of([this.prompt], [this.text], proposal)

    scripts = [script(index) for index in last_wrong]
    prompts = [this.prompt] * len(scripts)
    return generate(
        small_pair(),
        np.concatenate(scripts),
        prompts,
        draft_length=GAMMA,
        max_new_tokens=max_new_tokens,
        eos_ids=(this.eos,),
    )


def test_eos_at_every_index_of_a_run():
    """The text ends with its first EOS, whether draft 1 .. gamma, the bonus token after them, or a correction."""
    this = ending()
    out = generate_ending(this.index, len(this.text))
    for row, text in enumerate(out.tokens):
        assert text.tolist() == this.text[: this.index + 1], row
    # Rounds began where they should: row by row, the last round emitted 5, 4, 3, 2, 1 and 1 tokens.
    assert out.stats.rounds == sum(this.index - GAMMA - 1 + row + 1 for row in range(GAMMA + 1)) + this.index


@pytest.mark.parametrize("beyond", [0, 1, 3])
def test_eos_and_budget_in_one_run(beyond):
    """The budget ends with the EOS, or up to three tokens after it: the same text."""
    this = ending()
    for text in generate_ending(this.index, this.index + 1 + beyond).tokens:
        assert text.tolist() == this.text[: this.index + 1]


@pytest.mark.parametrize("before", [0, 1])
def test_budget_at_every_index_of_a_run(before):
    """The text ends with the budget, whether at draft 1 .. gamma, the bonus token after them, or a correction."""
    this = ending()
    budget = this.index - before
    for text in generate_ending(budget - 1, budget).tokens:
        assert text.tolist() == this.text[:budget]


def test_eos_as_the_first_token():
    """The prefill's own token ends the text: no round runs."""
    this, pair = ending(), small_pair()
    settings = {"max_new_tokens": 9, "eos_ids": (this.text[0],)}
    for generated in (
        decoding.generate(pair.target, pair.draft_model, this.prompt, loop="plain", **settings),
        generate_alone(pair.target, this.prompt, **settings),
    ):
        assert generated.tokens[0].tolist() == this.text[:1] and generated.stats.rounds == 0


def test_a_drafted_eos_ends_nothing():
    """A drafter that always proposes EOS: rejected, it ends nothing, and the target's still ends the text."""
    this = ending()
    out = generate_ending(this.index, len(this.text), propose=lambda index, token: this.eos)
    for text in out.tokens:
        assert text.tolist() == this.text[: this.index + 1]
    assert out.stats.accepted == len(out.tokens)  # the last token of each row, where the proposal was right


def test_autoregressive_text_ends_alike():
    this, pair = ending(), small_pair()
    out = generate_alone(pair.target, this.prompt, max_new_tokens=this.index + 3, eos_ids=(this.eos,))
    assert out.tokens[0].tolist() == this.text[: this.index + 1]


def test_context_exactly_full(near_ties):
    """prompt + new tokens == max_position_embeddings, with drafts that reach past it; one token more is an error."""
    pair, new_tokens = small_pair(), 3 * WINDOW + 4
    prompt = random_prompts((CONTEXT - new_tokens,), seed=4)[0]
    text, prompts = greedy_text("small", tuple(prompt)), [prompt] * 3
    script = np.concatenate([script_of([prompt], [text], propose) for propose in PROPOSALS.values()])
    out = generate(pair, script, prompts, draft_length=GAMMA, max_new_tokens=new_tokens)
    for row in range(3):
        near_ties.compare(pair.target, prompt, out.tokens[row], text, f"full context, {list(PROPOSALS)[row]} drafts")
    with pytest.raises(ValueError, match=f"context of {CONTEXT}"):
        decoding.generate(pair.target, pair.draft_model, prompt, max_new_tokens=new_tokens + 1)
