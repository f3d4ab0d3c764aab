"""Checks of the exercises in 04."""

from collections.abc import Sequence

import numpy as np

from exercises import say

# What each mistake replaces, by draft step: from step 1 on, or from step 2 on.
MISTAKES = {"a": 1, "b": 2, "c": 2, "d": 1, "e": 2}
CHANGES_WITH_THE_TOKEN = {"embedding": True, "hidden state": False, "cache": False}


def check_1(change_draft_1: str, change_only_later: str) -> bool:
    """Which mistakes reach draft 1."""
    answers = {1: set(change_draft_1 or ""), 2: set(change_only_later or "")}
    if answers[1] & answers[2] or answers[1] | answers[2] != set(MISTAKES):
        return say("4.1", False, "each of the letters a to e belongs into exactly one of the two.")
    wrong = sum(MISTAKES[letter] != step for step, letters in answers.items() for letter in letters)
    if wrong:
        return say("4.1", False, f"{wrong} of 5 are in the wrong place; ask for each what step 1 gets.")
    return say("4.1", True, "a mistake changes draft 1 where it changes what step 1 gets.")


def check_2(
    constant: Sequence[float], one_a_step: Sequence[float] | None, twenty_a_step: Sequence[float] | None
) -> bool:
    """Acceptance with an advancing position, by place."""
    if one_a_step is None or twenty_a_step is None:
        return say("4.2", False, "put the four shares of each run there.")
    constant, one, twenty = (np.asarray(each, float) for each in (constant, one_a_step, twenty_a_step))
    if not constant.shape == one.shape == twenty.shape:
        return say("4.2", False, f"expected {len(constant)} shares for each run.")
    if (np.diff(one) > 0).any() or (np.diff(twenty) > 0).any():
        return say("4.2", False, "a share up to a place cannot be larger than the share up to the place before.")
    if constant[0] != one[0] or constant[0] != twenty[0]:
        return say("4.2", False, "draft 1 changes; how far has step 1 advanced?")
    if not twenty[-1] < one[-1] <= constant[-1] + 0.05:
        return say(
            "4.2", False, "the larger the advance, the worse the last draft should be; is `place` in your function?"
        )
    return say("4.2", True, "the farther from the position that it was trained at, the more drafts are lost.")


def check_3(differ: Sequence[str], the_same: Sequence[str]) -> bool:
    """Which inputs know the token that was sampled."""
    if set(differ) | set(the_same) != set(CHANGES_WITH_THE_TOKEN) or set(differ) & set(the_same):
        return say("4.3", False, "put each of 'embedding', 'hidden state' and 'cache' into one of the two lists.")
    wrong = [name for name, changes in CHANGES_WITH_THE_TOKEN.items() if changes != (name in differ)]
    if wrong:
        return say(
            "4.3", False, f"{len(wrong)} in the wrong list; which of them were there before the token was sampled?"
        )
    return say("4.3", True, "now say what a drafter cannot know if the one that differs is missing.")
