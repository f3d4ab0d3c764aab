"""`token_probs` against transformers' logits warpers: temperature, top-k and top-p in that order, then softmax."""

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from decoding import Sampling
from tests.draws import token_probs_jit

ROWS, VOCAB = 64, 50
SETTINGS = [
    Sampling(temperature, top_k, top_p)
    for temperature in (0.3, 1.0, 2.5)
    for top_k, top_p in ((0, 1.0), (7, 1.0), (1, 1.0), (VOCAB, 1.0), (3 * VOCAB, 1.0), (0, 0.9), (0, 1e-6), (9, 0.7))
]


def torch_probs(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    scores = TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return torch.softmax(scores.double(), dim=-1).numpy()


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_token_probs_equals_the_warpers(sampling):
    """Random logits of three spreads: the same tokens stay, with probabilities within 5e-6.

    (A token that stays with less than 1e-30 may be 0 in float32.)
    """
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(0, spread, (ROWS, VOCAB)) for spread in (0.5, 3, 9)]).astype(np.float32)
    ours, theirs = np.asarray(token_probs_jit(logits, sampling)), torch_probs(logits, sampling)
    assert not (ours > 0)[theirs == 0].any() and (ours > 0)[theirs > 1e-30].all()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_token_probs_equals_the_warpers_where_logits_tie(sampling):
    """Whole logits, so that many are equal: as many tokens stay, with the same probabilities (1e-6).

    Which of several equal tokens stays at the edge of top-p depends on the sort in transformers; here it is the lowest ids.
    Without top-p the tokens are the same, too: all that tie with the k-th stay.
    """
    logits = np.random.default_rng(0).integers(-3, 4, (ROWS, VOCAB)).astype(np.float32)
    ours, theirs = np.asarray(token_probs_jit(logits, sampling)), torch_probs(logits, sampling)
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=0, atol=1e-6)
    if sampling.top_p == 1:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    for row, probs in zip(logits, ours, strict=True):
        for value in set(row[probs > 0].tolist()):
            kept = probs[row == value] > 0
            assert kept[: kept.sum()].all(), "of equal tokens the lowest ids stay"
