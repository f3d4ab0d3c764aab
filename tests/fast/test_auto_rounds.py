"""Rounds of changing length: the text of the plain loop, in caches that grow, whatever lengths are chosen and when."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import decoding
from decoding.draft_length import DraftLengths
from decoding.fast import auto_rounds
from decoding.stages import prefill
from tests.models import SMALL, random_target, small_drafter

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]


class InTurn(DraftLengths):
    """Long and short drafts in turn, so that a cache is full for one call and not for the next."""

    def __init__(self, lengths: tuple[int, ...]):
        super().__init__(lengths)
        self._turns = itertools.cycle(lengths)

    def choose(self) -> tuple[int, int | None]:
        return next(self._turns), 3


@pytest.mark.parametrize("lengths", [(8, 0, 3), (0, 8)], ids=str)
def test_a_text_goes_on_in_larger_caches(monkeypatch, lengths):
    monkeypatch.setattr(prefill, "MIN_CAPACITY", 1)
    monkeypatch.setattr(decoding.fast, "FIRST_ROOM", 1)
    target = random_target(dataclasses.replace(SMALL, max_position_embeddings=512), seed=18)
    sizes = set()

    def watched(state, config, capacity, writes=None):
        sizes.add(capacity)
        return resized(state, config, capacity, writes)

    resized = auto_rounds.resized
    monkeypatch.setattr(auto_rounds, "resized", watched)
    how = {"max_new_tokens": 150, "key": jax.random.key(3)}
    drafted = set()
    ours = decoding.generate(
        target, small_drafter(), PROMPTS, draft_length=InTurn(lengths), **how,
        on_round=lambda last: drafted.add(last.draft_tokens.shape[1]),
    )  # fmt: skip
    theirs = decoding.generate_autoregressive(target, PROMPTS, **how, loop="plain")
    assert drafted == set(lengths) and len(sizes) >= 2, "caches grew"
    for text, expected in zip(ours.tokens, theirs.tokens, strict=True):
        np.testing.assert_array_equal(text, expected)
    assert ours.stats.emitted == 300


def test_rounds_and_seconds_are_told(monkeypatch):
    """Every round that ran, with the rows that took part; no time for a call during which something was compiled."""
    lengths, told = InTurn((2, 0)), []
    monkeypatch.setattr(lengths, "saw", lambda length, accepted: told.append((length, accepted)))
    target = random_target(SMALL, seed=18)
    rounds = []
    decoding.generate(
        target, small_drafter(), PROMPTS, draft_length=lengths, max_new_tokens=20, on_round=rounds.append, eos_ids=(14,)
    )
    expected = [(last.draft_tokens.shape[1], last.num_accepted[last.num_emitted > 0].tolist()) for last in rounds[1:]]
    assert told == expected
    assert set(lengths.seconds) == {0, 2} and all(value > 0 for values in lengths.seconds.values() for value in values)
