"""Sampled text follows the target's distribution: one statistical test of the whole of `generate`, with a fixed seed.

4096 equal prompts in one batch, three new tokens each: the first is the prefill's, the others come from one round or
two.  Their joint distribution is computed exactly from the target; Pearson's chi-square compares.

Power: at a level of 1e-3, any distribution whose chi-square distance from the true one (sum of difference^2 / p) is at least
0.02 is caught with a probability of 99%; `test_power` computes this.  The commonest mistake, drafts taken greedily but
accepted as if drawn from the softmax, is caught in fact.

A batch of equal rows does not show every dependence between the random numbers of one row: batches of one do.
"""

import functools
from unittest import mock

import jax
import numpy as np
import pytest
import scipy.stats

import decoding
import gemma4
from decoding import Draft, Sampling
from decoding.round import speculative_round
from decoding.sampling import token_probs
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import small_drafter, small_target

ROWS, LEVEL = 4096, 1e-3
PROMPT = [3, 14, 0, 7, 7, 2, 9, 1]
SAMPLING = Sampling(1.0, top_k=6, top_p=0.9)
DRAFTING = Sampling(0.7, top_k=8)
NEW_TOKENS = 3


@functools.cache
def true_distribution() -> np.ndarray:
    """[v, v, v], float64: the target's joint distribution of the first three tokens."""
    joint = np.ones(())
    for length in range(NEW_TOKENS):
        prefixes = np.array([[*PROMPT, *prefix] for prefix in np.ndindex((VOCAB,) * length)])
        logits = gemma4.forward(small_target(), prefixes).logits[:, -1]
        probs = np.float64(token_probs(logits, SAMPLING))
        joint = joint[..., None] * (probs / probs.sum(axis=-1, keepdims=True)).reshape((VOCAB,) * (length + 1))
    return joint


def cells() -> tuple[np.ndarray, np.ndarray]:
    """Expected counts, and for each text the cell that it falls in: those expected less than 5 times share one."""
    expected = ROWS * true_distribution().reshape(-1)
    often = expected >= 5
    index = np.where(often, np.cumsum(often), 0)
    return np.bincount(index, expected), index


def chi_square(texts: np.ndarray) -> float:
    expected, index = cells()
    place = np.ravel_multi_index(tuple(texts.T), (VOCAB,) * NEW_TOKENS)
    assert (true_distribution().reshape(-1)[place] > 0).all(), "a text that the target cannot write"
    return float((np.square(np.bincount(index[place], minlength=len(expected)) - expected) / expected).sum())


def sample(draft_length: int, draft_sampling: Sampling, acceptance: str = "token") -> decoding.Generation:
    return decoding.generate(
        small_target(),
        small_drafter(seed=11),  # of the first 24 the one whose second drafts are accepted most
        [PROMPT] * ROWS,
        max_new_tokens=NEW_TOKENS,
        draft_length=draft_length,
        sampling=SAMPLING,
        draft_sampling=draft_sampling,
        acceptance=acceptance,
        key=jax.random.key(1),
        loop="plain",
    )


def limit() -> float:
    return scipy.stats.chi2.isf(LEVEL, len(cells()[0]) - 1)


@pytest.mark.parametrize(
    ("draft_length", "draft_sampling", "acceptance"),
    [(1, DRAFTING, "token"), (2, DRAFTING, "token"), (2, DRAFTING, "block"), (1, Sampling(), "token")],
    ids=str,
)
def test_sampled_text_follows_the_targets_distribution(draft_length, draft_sampling, acceptance):
    """Chi-square below its 1e-3 quantile.  Drafts are sampled or greedy, accepted and rejected, and more follows."""
    out = sample(draft_length, draft_sampling, acceptance)
    statistic = chi_square(np.stack(out.tokens))
    print(f"chi-square {statistic:.1f}, limit {limit():.1f}; {out.stats}")
    assert all(0.01 < share < 0.5 for share in out.stats.acceptance_per_position)
    assert statistic < limit()


def test_random_numbers_of_a_round_are_independent():
    """One row, one draft, 16384 keys: the first token, and the second after an acceptance, follow the target's distribution.

    Chi-square each below its 1e-3 quantile.  If drawing the draft and accepting it shared a uniform number, the first
    would not; in a batch each row would then share it with another row, and every row alone would look right.
    Not every pair of distributions shows that: where each token is accepted for all numbers that draw it or for none, it
    changes nothing.  With this prompt and drafter the statistic would be nearly two thousand.
    """
    target, draft_model, keys = small_target(), small_drafter(seed=10), jax.random.split(jax.random.key(2), 4 * ROWS)
    options = decoding.Options(1, SAMPLING, DRAFTING)
    prompt = [2, 1, 2, 11, 15, 14, 10, 15]
    state = decoding.prefill(target, [prompt], options, max_new_tokens=NEW_TOKENS)
    prefix = [*prompt, int(state.token[0])]

    def last_round(key, state):
        last = speculative_round(target, draft_model, state._replace(key=key), options).last
        return last.tokens[0], last.num_accepted[0]

    def statistic(tokens, prefixes) -> tuple[float, float]:
        """Chi-square, and its limit, of the tokens after each of the prefixes (with the distribution of each)."""
        kinds, index = np.unique(np.array(prefixes), axis=0, return_inverse=True)
        probs = np.float64(token_probs(gemma4.forward(target, kinds).logits[:, -1], SAMPLING))
        expected = probs * np.bincount(index.ravel())[:, None]
        seen = np.zeros_like(expected)
        np.add.at(seen, (index.ravel(), tokens), 1)
        assert not seen[expected == 0].any()
        often = expected >= 5
        degrees = often.sum() - often.any(axis=1).sum()
        return (np.square(seen - expected)[often] / expected[often]).sum(), scipy.stats.chi2.isf(LEVEL, degrees)

    tokens, num_accepted = map(np.asarray, jax.jit(jax.vmap(last_round, in_axes=(0, None)))(keys, state))
    first, limit_of_first = statistic(tokens[:, 0], [prefix] * len(tokens))
    went_on = tokens[num_accepted == 1]
    second, limit_of_second = statistic(went_on[:, 1], [[*prefix, token] for token in went_on[:, 0]])
    print(f"chi-square {first:.1f} and {second:.1f}, limits {limit_of_first:.1f} and {limit_of_second:.1f}")
    assert 0.02 < len(went_on) / len(tokens) < 0.98
    assert first < limit_of_first and second < limit_of_second


def test_power():
    """What the docstring promises about distributions that are caught."""
    degrees = len(cells()[0]) - 1
    assert scipy.stats.ncx2.sf(limit(), degrees, ROWS * 0.02) > 0.99


def test_greedy_drafts_accepted_as_if_drawn_are_caught():
    """Drafts by argmax, accepted with their softmax, as transformers 5.22.2 and KerasHub 0.32 do: far off."""

    def mistaken_draft(*args, sampling, **settings) -> Draft:
        drafted = decoding.draft(*args, sampling=sampling, **settings)
        return drafted._replace(tokens=drafted.probs.argmax(axis=-1).astype(drafted.tokens.dtype))

    decoding.speculative_step.clear_cache()  # it would run the round that it has compiled
    with mock.patch.object(decoding.round, "draft", mistaken_draft):
        statistic = chi_square(np.stack(sample(1, DRAFTING).tokens))
    decoding.speculative_step.clear_cache()
    print(f"chi-square {statistic:.1f}, limit {limit():.1f}")
    assert statistic > 3 * limit()
