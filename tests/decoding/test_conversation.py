"""A chat whose cache stays between turns gives the answers of one that reads everything anew."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tokenizers import AddedToken

import decoding
import drafter.config
from decoding import Sampling
from decoding.conversation import Conversation
from decoding.oracle.tiny import restless
from decoding.stages import prefill
from decoding.training.text import train_tokenizer
from gemma4.chat import END_OF_THOUGHT, END_OF_TURN, THINK, THOUGHT, TURN, chat
from tests.models import SENTENCES, SMALL, random_drafter, random_target, small_drafter, small_target

GAMMA, NEW_TOKENS = 3, 12


@functools.cache
def pair():
    """A pair with a vocabulary for texts, whose answers end with <turn|> or after NEW_TOKENS tokens."""
    tokenizer = train_tokenizer(SENTENCES, 320)
    names = (TURN, END_OF_TURN, THINK, THOUGHT, END_OF_THOUGHT)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    ends = (tokenizer.token_to_id(END_OF_TURN),)
    config = dataclasses.replace(SMALL, vocab_size=328, max_position_embeddings=512, eos_token_ids=ends)
    target = restless(random_target(config, 5))
    draft_config = drafter.config.config_for(config, width=8, mlp=16, heads=2)
    return target, random_drafter(draft_config, seed=3), tokenizer


def conversation(**settings) -> Conversation:
    return Conversation(*pair(), **{"draft_length": GAMMA, "max_new_tokens": NEW_TOKENS} | settings)


def tokens_of(rounds) -> list[int]:
    return [int(token) for last in rounds for token in last.tokens[0, : last.num_emitted[0]]]


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many tokens each prefill was given."""
    counts, original = [], decoding.conversation.prefill

    def counting(target, ids, *args, **settings):
        counts.append(len(ids))
        return original(target, ids, *args, **settings)

    monkeypatch.setattr(decoding.conversation, "prefill", counting)
    return counts


@pytest.mark.parametrize(("new_tokens", "turns_from_the_cache"), [(1, {1, 2, 3, 4}), (2, {1, 3}), (12, set())])
def test_each_answer_is_that_of_the_whole_conversation(read, new_tokens, turns_from_the_cache):
    """Greedy, five turns: the text of a generation over all that came before.

    A turn reads only what the cache does not hold, unless the answer's text has other tokens than the model drew, as texts of a
    random model often have.
    """
    this, (target, draft_model, tokenizer) = conversation(system="Be brief.", max_new_tokens=new_tokens), pair()
    whole = []
    for text in ("Hello", "And then?", "so", "x " * 40, "the"):
        emitted = tokens_of(this.reply(text))
        ids = chat(tokenizer, this.turns[:-1])
        whole.append(len(ids))
        settings = {"draft_length": GAMMA, "max_new_tokens": new_tokens, "eos_ids": target.config.eos_token_ids}
        expected = decoding.generate(target, draft_model, ids, loop="plain", **settings)
        assert emitted == expected.tokens[0].tolist()
        assert this.turns[-1] == ("model", this.answer.text)
    assert {
        turn for turn, counts in enumerate(zip(read, whole, strict=True)) if counts[0] < counts[1]
    } == turns_from_the_cache


def test_an_answer_that_is_interrupted():
    """The next turn goes on from what was emitted."""
    this = conversation()
    rounds = this.reply("Hello")
    first = [next(rounds), next(rounds)]
    rounds.close()
    assert this.turns[0] == ("user", "Hello") and this.turns[1][0] == "model"
    emitted, tokenizer = tokens_of(this.reply("And?")), pair()[2]
    ids = chat(tokenizer, this.turns[:-1])
    settings = {"draft_length": GAMMA, "max_new_tokens": NEW_TOKENS, "eos_ids": pair()[0].config.eos_token_ids}
    assert emitted == decoding.generate(*pair()[:2], ids, loop="plain", **settings).tokens[0].tolist()
    assert len(tokens_of(first)) >= 2


def test_a_long_answer_goes_on_in_larger_caches(monkeypatch):
    """From a cache that 40 tokens nearly fill."""
    monkeypatch.setattr(prefill, "MIN_CAPACITY", 1)
    monkeypatch.setattr(decoding.fast, "FIRST_ROOM", 1)
    (target, draft_model, tokenizer), length = pair(), 250
    emitted = tokens_of(conversation(max_new_tokens=length).reply("Hello"))
    settings = {
        "draft_length": GAMMA,
        "max_new_tokens": length,
        "eos_ids": target.config.eos_token_ids,
        "loop": "plain",
    }
    expected = (
        decoding.generate(target, draft_model, chat(tokenizer, [("user", "Hello")]), **settings).tokens[0].tolist()
    )
    assert emitted == expected and len(emitted) > 150


def test_sampled_answers_follow_the_key():
    texts = [
        tokens_of(conversation(sampling=Sampling(1.0), key=jax.random.key(seed)).reply("Hello")) for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


# -- a prefill that continues a cache ----------------------------------------------------------------------------------

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]
MORE = [[4, 4, 9, 11, 2, 3, 1], [6]]


@pytest.mark.parametrize("max_chunk", [512, 4])
def test_a_prefill_continues_a_cache(monkeypatch, max_chunk):
    """Ragged rows, past the window: the state of a prefill over everything, within 2e-5, in one chunk and in several."""
    monkeypatch.setattr(prefill, "MAX_CHUNK", max_chunk)
    target, new = small_target(), {"max_new_tokens": 8}
    first = decoding.prefill(target, PROMPTS, **new)
    state = decoding.prefill(target, MORE, **new, after=first.cache)
    whole = decoding.prefill(target, [a + b for a, b in zip(PROMPTS, MORE, strict=True)], **new)
    assert state.cache.length.tolist() == whole.cache.length.tolist() == [10, 8]
    np.testing.assert_allclose(state.hidden, whole.hidden, rtol=0, atol=2e-5 * np.abs(whole.hidden).max())
    options = decoding.Options(GAMMA)
    texts = []
    for each in (state, whole):
        rounds = decoding.generation.speculative_rounds(target, small_drafter(), each, options)
        texts.append([row.tolist() for row in decoding.generation.collect(rounds).tokens])
    assert texts[0] == texts[1]


def test_what_does_not_fit_the_cache_is_refused():
    target = small_target()
    cache = decoding.prefill(target, PROMPTS, max_new_tokens=8).cache
    with pytest.raises(ValueError, match="after: expected a cache of 1 rows, one for each prompt, got 2"):
        decoding.prefill(target, [2], max_new_tokens=8, after=cache)
    with pytest.raises(
        ValueError, match="row 1: 7 tokens in the cache, 50 of the prompt and 8 new ones are 65, more than"
    ):
        decoding.prefill(target, [[2], [2] * 50], max_new_tokens=8, after=cache)
    counting = decoding.Options(GAMMA, processors=[decoding.processors.RepetitionPenalty(1.1)])
    with pytest.raises(
        ValueError, match="processors: they count the tokens before, and a cache given as `after` does not"
    ):
        decoding.prefill(target, MORE, counting, max_new_tokens=8, after=cache)
