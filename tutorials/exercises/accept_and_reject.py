"""The checks of tutorial 06."""

from collections.abc import Callable, Sequence

import numpy as np

from exercises import say

P = np.array([0.5, 0.3, 0.2])


def check_1(acceptance: float | None, word: int | None) -> bool:
    if acceptance is None or word is None:
        return say("6.1", False, "put in a probability and a word.")
    if abs(acceptance - 0.7) > 1e-6:
        return say("6.1", False, "what do p and q have in common, word for word, and what is the sum?")
    if word != 0:
        return say("6.1", False, "the probability is right; which words does the drafter say too seldom?")
    return say("6.1", True, "only the word with p > q is missing after a refusal.")


def check_2(residual: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> bool:
    rng = np.random.default_rng(6)
    for p, q in rng.dirichlet(np.ones(5), (50, 2)):
        got = np.asarray(residual(p.copy(), q.copy()), float)
        if got.shape != p.shape or (got < 0).any() or abs(got.sum() - 1) > 1e-9:
            return say("6.2", False, "the result is not a distribution: is something negative, or is the sum not 1?")
        if got[p <= q].any():
            return say("6.2", False, "a word that the drafter says often enough gets another chance.")
        emitted = np.minimum(p, q) + (1 - np.minimum(p, q).sum()) * got
        if np.abs(emitted - p).max() > 1e-9:
            return say("6.2", False, "the right words, but accepted and replaced together are not p.")
    with np.errstate(all="ignore"):
        equal = np.asarray(residual(P.copy(), P.copy()), float)
    if equal.shape != P.shape or not np.isfinite(equal).all() or abs(equal.sum() - 1) > 1e-9 or (equal < 0).any():
        return say("6.2", False, "for p = q the result is not a distribution; there any one will do. Why?")
    return say("6.2", True, "and for p = q it does not matter, because nothing is refused (but for rounding).")


def check_3(worst: Sequence[float] | None, worst_with_a_tenth: Sequence[float] | None) -> bool:
    if worst is None or worst_with_a_tenth is None:
        return say("6.3", False, "put in two distributions over three words.")
    for least, q in ((0.0, worst), (0.1, worst_with_a_tenth)):
        q = np.asarray(q, float)
        if q.shape != (3,) or (q < least - 1e-9).any() or abs(q.sum() - 1) > 1e-9:
            return say("6.3", False, f"{q.tolist()} is no distribution over three words that are at least {least:g}.")
        acceptance, lowest = np.minimum(P, q).sum(), lowest_acceptance(least)
        if acceptance > lowest + 1e-9:
            return say(
                "6.3", False, f"{q.tolist()} is accepted with {acceptance:.2f}; there is a q that is accepted less."
            )
    return say("6.3", True, "all that may go to one word goes to the one that the target likes least.")


def lowest_acceptance(least: float) -> float:
    """β is concave in q, so that its minimum is at a corner: all words at `least`, and the rest on one of them."""
    corners = np.full((3, 3), least) + np.eye(3) * (1 - 3 * least)
    return float(np.minimum(P, corners).sum(axis=1).min())
