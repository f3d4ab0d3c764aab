"""The checks of tutorial 07."""

from collections.abc import Callable, Sequence

import numpy as np

from exercises import say

BLOCKS = {"a": (2, 0.5, 0.3), "b": (0.5, 1.5, 0.8), "c": (0.9, 0.8, 0.7), "d": (0.9, 1.1, 1)}


def chances(ratios: Sequence[float], by_block: bool) -> np.ndarray:
    """The probability that at least 1, 2, .. drafts are kept."""
    kept = [1.0]
    for ratio in ratios:
        kept.append(min(1, kept[-1] * ratio) if by_block else kept[-1] * min(1, ratio))
    return np.array(kept[1:])


def check_1(token_by_token: float | None, by_block: float | None) -> bool:
    if token_by_token is None or by_block is None:
        return say("7.1", False, "put in your two numbers.")
    if abs(token_by_token - 0.4) > 1e-6:
        return say("7.1", False, "token by token: which of the three can be refused at all?")
    if abs(by_block - 1) > 1e-6:
        return say("7.1", False, "token by token is right; by block, go on from each weight to the next, and cap it.")
    return say("7.1", True, "two surpluses make up for one deficit before them.")


def check_2(mean_kept: Callable[[Sequence[float], bool], float]) -> bool:
    rng = np.random.default_rng(7)
    for ratios in np.exp(rng.normal(0, 0.7, (50, 4))):
        for by_block, name in ((False, "token by token"), (True, "by block")):
            got = mean_kept(ratios.tolist(), by_block)
            if not 0 <= got <= 4 or abs(got - chances(ratios, by_block).sum()) > 1e-6:
                return say(
                    "7.2",
                    False,
                    f"{name}, p/q = {', '.join(f'{ratio:.2f}' for ratio in ratios)}: {got:.3f} is not the mean.",
                )
    return say("7.2", True, "a block that keeps n drafts is counted once for each of 1, 2, .. n.")


def check_3(alike: str | None) -> bool:
    if alike is None:
        return say("7.3", False, "name the blocks, such as 'bd'.")
    same = {name for name, ratios in BLOCKS.items() if np.allclose(chances(ratios, True), chances(ratios, False))}
    if set(alike) != same:
        wrong = sorted(set(alike) ^ same & BLOCKS.keys()) or sorted(set(alike) - BLOCKS.keys())
        return say(
            "7.3", False, f"{len(wrong)} of the blocks named or left out: write down both rows of chances for each."
        )
    return say("7.3", True, "where no deficit comes before a surplus, there is nothing to make up for.")
