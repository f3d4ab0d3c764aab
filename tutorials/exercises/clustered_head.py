"""Checks of the exercises in 05."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from drafter import cluster_recall
from exercises import say

VOCABULARY, CLUSTERS, WIDTH, SEARCHED = 2048, 64, 128, 16


def check_1(recall_of_all: float | None, multiplications: int | None) -> bool:
    """Recall and multiplications of a head that searches all clusters."""
    if recall_of_all is None or multiplications is None:
        return say("5.1", False, "put two numbers there.")
    if not np.isclose(recall_of_all, VOCABULARY / VOCABULARY):
        return say("5.1", False, "the recall: is there a token that is in no cluster?")
    if multiplications == VOCABULARY * WIDTH:
        return say("5.1", False, "that is the dense head; what does this one do before it scores tokens?")
    is_right = multiplications == (VOCABULARY + CLUSTERS) * WIDTH
    return say("5.1", is_right, "centroids and tokens are scored alike, by a dot product with the state.")


def check_2(
    by_frequency: np.ndarray | None,
    recall_by_frequency: float | None,
    frequency: np.ndarray,
    states: np.ndarray,
    table: np.ndarray,
) -> bool:
    """Clusters by frequency, and their recall as the library measures it."""
    if by_frequency is None or recall_by_frequency is None:
        return say("5.2", False, "put an ordering and a recall there.")
    ordering = np.asarray(by_frequency)
    if ordering.shape != frequency.shape or (np.sort(ordering) != np.arange(len(ordering))).any():
        return say("5.2", False, f"an ordering holds each token id from 0 to {len(frequency) - 1} once.")
    if (np.diff(frequency[ordering]) > 0).any():
        return say("5.2", False, "a token comes after one that is less frequent; the most frequent ones come first.")
    centroids = table[ordering].reshape(CLUSTERS, -1, table.shape[1]).mean(axis=1)
    arrays = [jnp.asarray(each) for each in (states, table, centroids, ordering)]
    right = cluster_recall(*arrays, SEARCHED)
    if abs(recall_by_frequency - right) > 2e-3:
        return say(
            "5.2", False, "the ordering is right, the recall is not; are the centroids the means of these clusters?"
        )
    return say(
        "5.2",
        True,
        f"{right:.2f}; compare it with random clusters, and ask what a frequent token's embedding looks like.",
    )


def check_3(text_can_contain_it: bool | None, sources: Sequence[str]) -> bool:
    """Where a token with q = 0 may come from."""
    known = {"draft", "correction", "bonus token"}
    if text_can_contain_it is None or set(sources) - known:
        return say("5.3", False, "answer True or False, and name sources among: draft, correction, bonus token.")
    if not text_can_contain_it:
        return say("5.3", False, "then the text would not follow the target's distribution.")
    if "draft" in sources:
        return say("5.3", False, "a draft is drawn from q.")
    if set(sources) != known - {"draft"}:
        return say("5.3", False, "a round ends in one of two ways, and in both the target adds a token; look at both.")
    return say(
        "5.3", True, "the target's own tokens come from the residual, where q = 0 leaves all of p, or from p itself."
    )
