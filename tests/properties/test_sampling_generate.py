"""Sampled text follows the target's distribution: a statistical test of the whole of `generate`, with a fixed seed.

4096 equal prompts in one batch, three new tokens each: the first is the prefill's, the others come from one round or
two.  Their joint distribution is computed exactly from the target; Pearson's chi-square compares.

Power: at a level of 1e-3, any distribution whose chi-square distance from the true one (sum of difference^2 / p) is at
least 0.02 is caught with a probability of 99%; `test_power` computes this.  Two mistakes are caught in fact.

A batch of equal rows does not show every dependence between the random numbers of one row: batches of one do.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
import scipy.stats

import decoding
import decoding.round
import gemma4
from decoding import Draft, Options, Sampling
from decoding.generation import collect
from decoding.round import AcceptFn, accept_drafts, speculative_round
from decoding.sampling import token_probs
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import small_drafter, small_target

ROWS, LEVEL = 4096, 1e-3
PROMPT = [3, 14, 0, 7, 7, 2, 9, 1]
SAMPLING = Sampling(1.0, top_k=6, top_p=0.9)
DRAFTING = Sampling(0.7, top_k=8)
NEW_TOKENS = 3
DRAFTER_SEED = 11  # of the first 24, the one whose second drafts are accepted most often


def chi_square_limit(degrees: int) -> float:
    return float(scipy.stats.chi2.isf(LEVEL, degrees))


@functools.cache
def true_probs() -> np.ndarray:
    """[v, v, v], float64: the target's joint distribution of the first three tokens."""
    joint = np.ones(())
    for length in range(NEW_TOKENS):
        prefixes = np.array([[*PROMPT, *prefix] for prefix in np.ndindex((VOCAB,) * length)])
        logits = gemma4.forward(small_target(), prefixes).logits[:, -1]
        probs = np.float64(token_probs(logits, SAMPLING))
        joint = joint[..., None] * (probs / probs.sum(axis=-1, keepdims=True)).reshape((VOCAB,) * (length + 1))
    return joint


def cells() -> tuple[np.ndarray, np.ndarray]:
    """Expected counts, and the cell of each text: all that are expected less than 5 times share one."""
    expected = ROWS * true_probs().reshape(-1)
    often = expected >= 5
    index = np.where(often, np.cumsum(often), 0)
    return np.bincount(index, expected), index


def chi_square(texts: np.ndarray) -> float:
    expected, index = cells()
    flat = np.ravel_multi_index(tuple(texts.T), (VOCAB,) * NEW_TOKENS)
    assert (true_probs().reshape(-1)[flat] > 0).all(), "a text that the target cannot write"
    return float((np.square(np.bincount(index[flat], minlength=len(expected)) - expected) / expected).sum())


def limit() -> float:
    return chi_square_limit(len(cells()[0]) - 1)


@pytest.mark.parametrize(
    ("draft_length", "draft_sampling", "acceptance", "loop"),
    [
        (1, DRAFTING, "token", "plain"),
        pytest.param(2, DRAFTING, "token", "plain", marks=pytest.mark.slow),
        (2, DRAFTING, "block", "plain"),
        (1, Sampling(), "token", "plain"),
        pytest.param(2, DRAFTING, "block", "streamed", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sampled_text_follows_the_targets_distribution(draft_length, draft_sampling, acceptance, loop):
    """Chi-square below its 1e-3 quantile.  Drafts are sampled or greedy, accepted and rejected, and more tokens follow."""
    out = decoding.generate(
        small_target(),
        small_drafter(DRAFTER_SEED),
        [PROMPT] * ROWS,
        max_new_tokens=NEW_TOKENS,
        draft_length=draft_length,
        sampling=SAMPLING,
        draft_sampling=draft_sampling,
        acceptance=acceptance,
        key=jax.random.key(1),
        loop=loop,
    )
    statistic = chi_square(np.stack(out.tokens))
    print(f"chi-square {statistic:.1f}, limit {limit():.1f}; {out.stats}")
    assert all(0.01 < share < 0.5 for share in out.stats.acceptance_per_position)
    assert statistic < limit()


def test_power():
    """As this file's docstring claims."""
    degrees = len(cells()[0]) - 1
    assert scipy.stats.ncx2.sf(limit(), degrees, ROWS * 0.02) > 0.99


def test_greedy_drafts_accepted_as_if_sampled_are_caught(monkeypatch):
    """Drafts by argmax, for which acceptance receives the softmax, as in transformers 5.22.2 and KerasHub 0.32: far off."""

    def mistaken_draft(*args, sampling, **settings) -> Draft:
        drafted = decoding.draft(*args, sampling=sampling, **settings)
        return drafted._replace(tokens=drafted.probs.argmax(axis=-1).astype(drafted.tokens.dtype))

    monkeypatch.setattr(decoding.round, "draft", mistaken_draft)
    options = Options(1, SAMPLING, DRAFTING)
    target, draft_model = small_target(), small_drafter(DRAFTER_SEED)
    step = jax.jit(lambda state: speculative_round(target, draft_model, state, options))
    state = decoding.prefill(target, [PROMPT] * ROWS, options, max_new_tokens=NEW_TOKENS, key=jax.random.key(1))
    rounds = [jax.device_get(state.last)]
    while not state.done.all():
        state = step(state)
        rounds.append(jax.device_get(state.last))
    statistic = chi_square(np.stack(collect(iter(rounds)).tokens))
    print(f"chi-square {statistic:.1f}, limit {limit():.1f}")
    assert statistic > 3 * limit()


# -- the random numbers of one row -------------------------------------------------------------------------------------

# Not every pair of distributions shows a shared random number: where each token is accepted for all numbers that draw it or for
# none, sharing changes nothing.
TELLING_PROMPT = [6, 0, 0, 1, 0, 10, 8, 10]


class Statistics(NamedTuple):
    """Chi-square of the first token and of the second, which follows an accepted draft."""

    first: float
    first_limit: float
    second: float
    second_limit: float
    share_accepted: float


def statistics_of_one_row(accept_fn: AcceptFn) -> Statistics:
    """One row, one draft, 16384 keys."""
    target, draft_model, options = small_target(), small_drafter(DRAFTER_SEED), Options(1, SAMPLING, DRAFTING)
    state = decoding.prefill(target, [TELLING_PROMPT], options, max_new_tokens=NEW_TOKENS)
    prefix = [*TELLING_PROMPT, int(state.token[0])]

    @jax.jit
    @jax.vmap
    def last_round(key):
        last = speculative_round(target, draft_model, state._replace(key=key), options, accept_fn).last
        return last.tokens[0], last.num_accepted[0]

    tokens, num_accepted = map(np.asarray, last_round(jax.random.split(jax.random.key(2), 4 * ROWS)))
    went_on = tokens[num_accepted == 1]
    first = next_token_chi_square(tokens[:, 0], [prefix] * len(tokens))
    second = next_token_chi_square(went_on[:, 1], [[*prefix, token] for token in went_on[:, 0]])
    return Statistics(*first, *second, len(went_on) / len(tokens))


def next_token_chi_square(tokens: np.ndarray, prefixes: list[list[int]]) -> tuple[float, float]:
    """The statistic and its limit."""
    kinds, index = np.unique(np.array(prefixes), axis=0, return_inverse=True)
    probs = np.float64(token_probs(gemma4.forward(small_target(), kinds).logits[:, -1], SAMPLING))
    expected = probs * np.bincount(index.ravel())[:, None]
    counts = np.zeros_like(expected)
    np.add.at(counts, (index.ravel(), tokens), 1)
    assert not counts[expected == 0].any()
    often = expected >= 5
    statistic = (np.square(counts - expected)[often] / expected[often]).sum()
    return float(statistic), chi_square_limit(often.sum() - often.any(axis=1).sum())


def test_random_numbers_of_a_round_are_independent():
    """The first token, and the second after an acceptance, follow the target's distribution: each below its 1e-3 quantile.

    If drawing the draft and accepting it shared a uniform number, the first would not.  In a batch each row would then share
    it with another row, and every row alone would look right.
    """
    statistics = statistics_of_one_row(accept_drafts)
    print(statistics)
    assert 0.02 < statistics.share_accepted < 0.98
    assert statistics.first < statistics.first_limit and statistics.second < statistics.second_limit


def test_a_shared_random_number_is_caught(monkeypatch):
    """Acceptance with the key of the draft stage."""
    keys, draft = [], decoding.draft

    def watched_draft(target, draft_model, token, hidden, shared, key, **settings) -> Draft:
        keys.append(key)
        return draft(target, draft_model, token, hidden, shared, key, **settings)

    monkeypatch.setattr(decoding.round, "draft", watched_draft)
    statistics = statistics_of_one_row(
        lambda logits, drafted, options, _: accept_drafts(logits, drafted, options, keys[0])
    )
    print(statistics)
    assert statistics.first > 3 * statistics.first_limit
