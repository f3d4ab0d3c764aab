"""The choice of the draft length: by hand, against the best fixed length on a machine of known seconds, and in a generation."""

import itertools

import jax
import numpy as np
import pytest

import decoding
from decoding.draft_length import FIRST_TRIES, LENGTHS, DraftLengths
from decoding.sampling import Sampling
from tests.models import small_drafter, small_target


def simulate(
    rate: float, seconds_of, tokens: int = 2000, rows: int = 1, noise: float = 0.1
) -> tuple[float, DraftLengths]:
    """Tokens per second on a machine where a round of length n takes `seconds_of(n)`, and each draft passes with `rate`.

    Rounds yield what they do on average, while the choice sees random ones.
    """
    lengths, rng = DraftLengths(), np.random.default_rng(0)
    elapsed = emitted = 0.0
    while emitted < tokens * rows:
        length, limit = lengths.choose()
        for _ in range(limit or 8):
            passed = rng.random((rows, length)) < rate
            accepted = np.cumprod(passed, axis=1).sum(axis=1)
            lengths.saw(length, accepted.tolist())
            emitted += rows * sum(rate**i for i in range(length + 1))
            elapsed += seconds_of(length)
        lengths.took(length, seconds_of(length) * (1 + noise * rng.random()))
    return emitted / elapsed, lengths


def best_fixed(rate: float, seconds_of, rows: int = 1) -> float:
    return max(rows * sum(rate**i for i in range(length + 1)) / seconds_of(length) for length in range(9))


MACHINES = {
    "bandwidth": lambda length: 1.0 + 0.02 * length,
    "processor": lambda length: 1.0 + 0.25 * length,
    "slow drafts": lambda length: 1.0 + 0.6 * length,
}


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("rate", [0.05, 0.4, 0.7, 0.9])
@pytest.mark.parametrize("machine", MACHINES)
def test_nearly_the_best_fixed_length(machine, rate, rows):
    """97 % of it, tries and probes included, with times that vary by a tenth."""
    found, lengths = simulate(rate, MACHINES[machine], rows=rows)
    assert found >= 0.97 * best_fixed(rate, MACHINES[machine], rows), lengths.best()


def test_a_useless_drafter_costs_little():
    """Never under 95 % of steps without a drafter, though a round costs several times a step."""
    found, lengths = simulate(0.0, lambda length: 1.0 + 0.8 * length)
    assert found >= 0.95 and lengths.best() == 0


def test_a_text_that_changes():
    """A drafter that gets better is found again: length 0 probes length 1."""
    seconds_of, (_, lengths) = MACHINES["processor"], simulate(0.0, MACHINES["processor"])
    assert lengths.best() == 0
    rng = np.random.default_rng(1)
    for _ in range(600):
        length, limit = lengths.choose()
        for _ in range(limit or 8):
            lengths.saw(length, [int(np.cumprod(rng.random(length) < 0.9).sum())])
        lengths.took(length, seconds_of(length))
    assert lengths.best() >= 4


def test_expected_tokens():
    """Where much was seen, those of the acceptance at each position."""
    lengths = DraftLengths()
    for accepted in itertools.islice(itertools.cycle([0, 1, 1, 2]), 4000):
        lengths.saw(2, [accepted])
    assert lengths.tokens_per_round(0) == 1
    assert lengths.tokens_per_round(1) == pytest.approx(1.75, abs=0.03)
    assert lengths.tokens_per_round(2) == pytest.approx(2.0, abs=0.04)


def test_seconds_between_measured_lengths():
    lengths = DraftLengths()
    for length, seconds in ((1, 2.0), (1, 4.0), (1, 3.0), (4, 9.0)):
        lengths.took(length, seconds)
    assert lengths.seconds_of(1) == 2 and lengths.seconds_of(3) == pytest.approx(2 + 7 * 2 / 3)
    assert lengths.seconds_of(6) == float("inf") and lengths.seconds_of(0) == float("inf"), "nothing is known of them"


# -- in a generation ---------------------------------------------------------------------------------------------------

PROMPTS = [[3, 5, 7], [2, 9]]


def generate(draft_length, seed: int = 0, **settings):
    how = {"max_new_tokens": 40, "key": jax.random.key(seed), **settings}
    return decoding.generate(small_target(), small_drafter(), PROMPTS, draft_length=draft_length, **how)


def test_greedy_text_is_the_same_at_any_length():
    """With lengths that really change, 0 among them."""
    lengths = DraftLengths()
    drafted = set()
    ours = generate(lengths, on_round=lambda last: drafted.add(last.draft_tokens.shape[1]))
    assert set(FIRST_TRIES) <= drafted, "all tries"
    for theirs in (generate(2), generate(5, loop="plain")):
        for text, other in zip(ours.tokens, theirs.tokens, strict=True):
            np.testing.assert_array_equal(text, other)
    assert ours.stats.emitted == 80 and set(lengths.seconds) <= set(LENGTHS) and lengths.seconds


def test_sampled_text_and_logprobs():
    ours = generate("auto", sampling=Sampling(1.0), logprobs=True)
    assert [len(row) for row in ours.tokens] == [40, 40] and ours.logprobs is not None
    assert [len(row) for row in ours.logprobs] == [40, 40] and all((row <= 0).all() for row in ours.logprobs)
    shares = ours.stats.acceptance_per_position
    assert len(shares) == 8 and all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    "draft_length, loop, message",
    [
        ("auto", "plain", "needs loop=\"streamed\", got loop='plain'"),
        ("auto", "on_device", 'needs loop="streamed"'),
        ("often", "streamed", "expected a whole number or \"auto\", got 'often'"),
    ],
)
def test_mistakes(draft_length, loop, message):
    with pytest.raises(ValueError, match=message):
        generate(draft_length, loop=loop)
