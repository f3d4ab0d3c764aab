"""The checks of tutorial 01."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

import decoding
from exercises import say

GAMMAS = (1, 2, 4, 8)
COUNT = 48


@functools.cache
def pair_and_prompt() -> tuple[decoding.Pair, list[int]]:
    pair = decoding.load_pair()
    ids = pair.tokenizer.encode("And it came to pass", add_special_tokens=False).ids
    return pair, [pair.target.config.bos_token_id, *ids]


@functools.cache
def measured(gamma: int) -> float:
    pair, prompt = pair_and_prompt()
    how = {"max_new_tokens": COUNT, "draft_length": gamma, "loop": "plain"}
    return decoding.generate(pair.target, pair.draft_model, prompt, **how).stats.tokens_per_round


@functools.cache
def greedy_text() -> list[int]:
    pair, prompt = pair_and_prompt()
    return decoding.generate_autoregressive(pair.target, prompt, max_new_tokens=COUNT, loop="plain").tokens[0].tolist()


def passes_with(drafts: Sequence[int]) -> int:
    """How many passes write the greedy text with the same drafts in every round: counted on the text, without a model."""
    text, written, passes = greedy_text(), 1, 0
    while written < COUNT:
        followed = text[written : written + len(drafts)]
        matches = np.cumprod([a == b for a, b in zip(drafts, followed, strict=False)]).sum()
        written, passes = written + int(matches) + 1, passes + 1
    return passes


def check_1(if_third_is_refused: int | None, if_none_is_refused: int | None) -> bool:
    if if_third_is_refused is None or if_none_is_refused is None:
        return say("1.1", False, "put in your two numbers.")
    if (if_third_is_refused, if_none_is_refused) == (3, 5):
        return say("1.1", True, "the accepted drafts, and always one token of the target's own.")
    return say("1.1", False, "count the boxes in the row 'emitted' of the first picture; whose is the last one?")


def check_2(tokens_per_pass: Mapping[int, float | None]) -> bool:
    if any(tokens_per_pass.get(gamma) is None for gamma in GAMMAS):
        return say("1.2", False, f"measure all of γ = {', '.join(map(str, GAMMAS))}.")
    wrong = [gamma for gamma in GAMMAS if abs(tokens_per_pass[gamma] - measured(gamma)) > 0.01]
    if not wrong:
        return say(
            "1.2", True, "tokens a pass rise with γ, ever more slowly; each draft costs the same time, used or not."
        )
    return say(
        "1.2", False, f"γ = {wrong[0]} differs; is the text greedy, of {COUNT} tokens, and of the page's prompt?"
    )


def check_3(text: Sequence[int] | None, passes: int | None, because: str | None) -> bool:
    if text is None or passes is None or because is None:
        return say("1.3", False, "give what write() returned, and a letter.")
    if list(text) != greedy_text():
        return say("1.3", False, "this is not the greedy text; which tokens does write() put into it?")
    (the,) = pair_and_prompt()[0].tokenizer.encode(" the", add_special_tokens=False).ids
    if passes != passes_with([the] * 4):
        return say("1.3", False, f"the text is right, but {passes} is not the number of passes with ' the' four times.")
    if because != "b":
        return say("1.3", False, "text and passes are right; is anything random in greedy decoding?")
    return say("1.3", True, "drafts that are never the target's choice cost passes, not words.")
