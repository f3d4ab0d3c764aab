"""The distribution of one round is the target's, whatever the drafter proposes, for both methods of acceptance.

The first test is the whole idea in fifteen lines.  The others do the same for every setting: to a total variation of 1e-6, for
several drafters and up to three drafts.  `decoding/oracle/law_check.py` has the toy models and says why it is exact.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from decoding import Acceptance, Sampling
from decoding.oracle.law_check import (
    DRAFTERS,
    FULL,
    GRID,
    LONGEST,
    SETTINGS,
    TARGET,
    TOLERANCE,
    VOCAB,
    Decide,
    Round,
    beside_a_rejected_row,
    emitted_law,
    steps_of,
    tables,
    target_law,
    total_variation,
)
from decoding.sampling import REFERENCE, sample_from, token_probs
from decoding.stages.accept import accept, accept_greedy, decide
from decoding.stages.accept_block import accept_block, decide_block
from tests.draws import drawn_probs, token_probs_jit

METHODS = {"token": decide, "block": decide_block}
each_method = pytest.mark.parametrize("method", METHODS)


# -- the idea ----------------------------------------------------------------------------------------------------------


@each_method
def test_one_draft_over_three_tokens(method):
    """All that can happen: each draft, and 4 x 4 uniforms, because every threshold here is a multiple of 1/4.

    Tokens 0 and 1 are always accepted, token 2 if u < 1/2.  The residual is 3/16 and 1/16: 3/4 of its mass at token 0.
    """
    p, q = np.float32([7, 5, 4]) / 16, np.float32([4, 4, 8]) / 16  # of the target, of the drafter
    uniforms = np.float32([1, 3, 5, 7]) / 8
    first_token = np.zeros(3)
    for draft, u, u_next in itertools.product(range(3), uniforms, uniforms):
        given = [[p, p]], [[draft]], [[q]], [[u, u_next]]
        result = METHODS[method](*map(jnp.array, given))
        emitted = draft if result.num_accepted[0] == 1 else result.next_token[0]
        first_token[emitted] += q[draft] / 16
    np.testing.assert_array_equal(first_token, p)


# -- every setting -----------------------------------------------------------------------------------------------------


@functools.cache
def probs_of(which: str, sampling: Sampling) -> np.ndarray:
    """[prefix, token], float32: what the code works with, of the target or of a drafter."""
    return np.asarray(token_probs_jit(TARGET if which == "target" else DRAFTERS[which], sampling))


@functools.cache
def jitted(decide: Decide) -> Decide:
    return jax.jit(decide)


def a_round(
    target: np.ndarray,
    drafts: np.ndarray,
    claimed: np.ndarray | None = None,
    method: str = "token",
    decide: Decide | None = None,
) -> Round:
    """A round that draws from `drafts` with `sample_from` and decides by a method, or as `decide` does.

    claimed: the distribution of the drafts that acceptance receives; the right one unless given.
    """
    claimed = drafts if claimed is None else claimed
    decide = jitted(decide or METHODS[method])
    return Round(target, drawn_probs(sample_from, drafts), claimed, decide, by_block=method == "block")


def distance(round: Round, gamma: int = LONGEST) -> float:
    return total_variation(emitted_law(round, gamma), target_law(round.target, (), gamma + 1))


@each_method
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_a_round_emits_the_targets_distribution(gamma, setting, method):
    """Total variation at most 1e-6, for drafters from identical to opposed; what is impossible never happens."""
    sampling, draft_sampling = SETTINGS[setting]
    target = probs_of("target", sampling)
    for name in DRAFTERS:
        joint = emitted_law(a_round(target, probs_of(name, draft_sampling), method=method), gamma)
        reference = target_law(target, (), gamma + 1)
        assert abs(joint.sum() - 1) < 1e-9 and not joint[reference == 0].any()
        off = total_variation(joint, reference)
        print(f"{method}, {setting}, {name} drafter, gamma {gamma}: total variation {off:.1e}")
        assert off <= TOLERANCE, f"{name}: {off:.1e}"


@each_method
def test_the_thresholds_predict_what_decide_does(method):
    """4000 random rows of uniforms, any setting: the thresholds that bisection found predict each decision."""
    rng, gamma = np.random.default_rng(0), LONGEST
    for sampling, draft_sampling in SETTINGS.values():
        this = tables(a_round(probs_of("target", sampling), probs_of("unrelated", draft_sampling)), gamma)
        steps = steps_of(jitted(METHODS[method]), *this)
        points = rng.integers(0, GRID, (len(this[1]), 8, gamma + 1))
        uniforms = (points / GRID).astype(np.float32)
        num_accepted, next_token = beside_a_rejected_row(jitted(METHODS[method]), *this, uniforms)
        for row, question in np.ndindex(num_accepted.shape):
            point = points[row, question]
            refused = point[:-1] >= steps.accept[row]
            first, after_last = np.flatnonzero([*refused, True])[0], np.flatnonzero([True, *~refused])[-1]
            count = after_last if method == "block" else first
            assert num_accepted[row, question] == count
            assert next_token[row, question] == (point[-1] >= steps.next_at_most[row, count]).sum()


@pytest.mark.parametrize(("method", "accept"), [("token", accept), ("block", accept_block)])
def test_accept_is_decide_with_uniform_numbers(method, accept):
    """2000 rows: `accept` decides as often each way as the thresholds predict (chi-square, at a level of 1e-4, seeded)."""
    gamma, count = 2, 2000
    target, drafts = probs_of("target", FULL), probs_of("close", FULL)
    target_probs, tokens, draft_probs = tables(a_round(target, drafts), gamma)
    steps = steps_of(jitted(METHODS[method]), target_probs, tokens, draft_probs)
    row = int(np.argmin(np.abs(steps.accept[:, 0] / GRID - 0.6)))  # accepted more often than not, but not always

    def repeated(x: np.ndarray) -> jax.Array:
        return jnp.asarray(np.repeat(x[row : row + 1], count, axis=0))

    out = jax.jit(accept)(repeated(target_probs), repeated(tokens), repeated(draft_probs), jax.random.key(1))
    counts = np.zeros((gamma + 1, VOCAB))
    np.add.at(counts, (np.asarray(out.num_accepted), np.asarray(out.next_token)), 1)
    stops = steps.stops(by_block=method == "block")[row]
    expected = count * stops[:, None] * np.diff(steps.next_at_most[row], axis=1, prepend=0) / GRID
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = (np.square(counts - expected)[possible] / expected[possible]).sum()
    assert statistic < scipy.stats.chi2.isf(1e-4, possible.sum() - 1)


@each_method
def test_accept_greedy_is_acceptance_with_the_one_hot_distribution(method):
    """Whole logits, so that many are equal: the decisions of `decide`, for any uniforms and any draft distribution."""
    rng, rows, gamma = np.random.default_rng(0), 4000, LONGEST
    logits = rng.integers(-2, 3, (rows, gamma + 1, VOCAB)).astype(np.float32)
    drafts, uniforms = rng.integers(0, VOCAB, (rows, gamma)), rng.integers(0, GRID, (rows, gamma + 1)) / GRID
    draft_probs = rng.dirichlet(np.ones(VOCAB), (rows, gamma)).astype(np.float32)
    drafts, uniforms = jnp.asarray(drafts, jnp.int32), jnp.asarray(uniforms, jnp.float32)
    one_hot = token_probs(jnp.asarray(logits), Sampling())
    expected = METHODS[method](one_hot, drafts, jnp.asarray(draft_probs), uniforms)
    for ours, reference in zip(accept_greedy(jnp.asarray(logits), drafts), expected, strict=True):
        np.testing.assert_array_equal(ours, reference)
    assert set(np.asarray(expected.num_accepted).tolist()) == set(range(gamma + 1))


# -- wrong ways to run a round -----------------------------------------------------------------------------------------
# Those of other engines are in `decoding/oracle/known_bugs`: test_known_bugs.py


def block_rule(
    target_probs, draft_tokens, draft_probs, uniforms, *, is_capped=True, is_chained=True, takes_longest=True
) -> Acceptance:
    """Block verification once more, from the paper: right as it is, wrong with any of its parts left out."""
    gamma = draft_tokens.shape[1]
    at_draft = functools.partial(jnp.take_along_axis, indices=draft_tokens[..., None], axis=2)
    ratios = (at_draft(target_probs[:, :gamma]) / at_draft(draft_probs))[..., 0]
    weights = [jnp.ones(len(ratios))]
    for i in range(gamma):
        weight = ratios[:, i] * (weights[-1] if is_chained else 1)
        weights.append(jnp.minimum(weight, 1) if is_capped else weight)
    weights = jnp.stack(weights, axis=1)
    residuals = jnp.maximum(weights[..., None] * target_probs - jnp.pad(draft_probs, ((0, 0), (0, 1), (0, 0))), 0)
    surplus = residuals.sum(axis=-1)
    is_accepted = uniforms[:, :-1] * (surplus + 1 - weights)[:, 1:] < surplus[:, 1:]
    if not takes_longest:
        is_accepted = jnp.cumprod(is_accepted, axis=1) > 0
    num_accepted = (is_accepted * jnp.arange(1, gamma + 1)).max(axis=1)
    rest = jnp.take_along_axis(residuals, num_accepted[:, None, None], axis=1)[:, 0]
    return Acceptance(num_accepted.astype(jnp.int32), sample_from(rest, uniforms[:, -1]))


def without_renormalising(decide: Callable) -> Decide:
    """The next token by the running sum of the weights as they are."""

    def take(weights, uniforms):
        return jnp.argmax(jnp.cumsum(weights, axis=-1) > uniforms[..., None], axis=-1).astype(jnp.int32)

    return functools.partial(decide, kernels=REFERENCE._replace(sample_from=take))


def p_and_q() -> tuple[np.ndarray, np.ndarray]:
    return probs_of("target", FULL), probs_of("unrelated", FULL)


def wrong_drafts(drafts: Sampling, claimed: Sampling) -> Round:
    """Drafts are drawn with other settings than acceptance receives."""
    return a_round(p_and_q()[0], probs_of("unrelated", drafts), probs_of("unrelated", claimed))


def wrong_block(**parts_left_out: bool) -> Round:
    return a_round(*p_and_q(), method="block", decide=functools.partial(block_rule, **parts_left_out))


WRONG: dict[str, Callable[[], Round]] = {
    "drafts tempered, claimed untempered": lambda: wrong_drafts(Sampling(0.6), FULL),
    "drafts untempered, claimed tempered": lambda: wrong_drafts(FULL, Sampling(0.6)),
    "residual not renormalised": lambda: a_round(*p_and_q(), decide=without_renormalising(decide)),
    "block: residual not renormalised": lambda: a_round(
        *p_and_q(), method="block", decide=without_renormalising(decide_block)
    ),
    "block: the first refusal ends the run": lambda: wrong_block(takes_longest=False),
    "block: weights not capped": lambda: wrong_block(is_capped=False),
    "block: weight of one draft alone": lambda: wrong_block(is_chained=False),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name):
    """Each is off by a total variation of 1e-3 at least, a thousand times what the test of the right ones allows."""
    off = distance(WRONG[name]())
    print(f"{name}: total variation {off:.3f}")
    assert off > 1e-3


def test_the_block_rule_with_all_its_parts_is_right():
    """So that it is the part left out that is caught."""
    assert distance(wrong_block()) <= TOLERANCE


def test_top_p_on_one_side_alone_is_another_distribution():
    """Acceptance that forgets the target's top-p emits the distribution before it, far from the one after it."""
    after, before, drafts = (
        probs_of("target", Sampling(1.0, top_p=0.8)),
        *(probs_of(x, FULL) for x in ("target", "close")),
    )
    assert total_variation(emitted_law(a_round(before, drafts), 1), target_law(after, (), 2)) > 0.05


# -- how many drafts are accepted --------------------------------------------------------------------------------------


def accepted_on_average(method: str, drafter: str, gamma: int) -> float:
    """The number of drafts, over all drafts and uniforms."""
    round = a_round(probs_of("target", FULL), probs_of(drafter, FULL), method=method)
    this = tables(round, gamma)
    stops = steps_of(round.decide, *this).stops(round.by_block)
    drawn = np.prod(np.take_along_axis(this[2], this[1][..., None], axis=2)[..., 0], axis=1, dtype=np.float64)
    return drawn @ stops @ np.arange(gamma + 1)


def test_by_block_more_drafts_are_accepted():
    """On average; as many where there is one draft, and for a drafter that is the target itself."""
    for drafter in ("unrelated", "close", "opposed"):
        by_gamma = (
            [accepted_on_average(method, drafter, gamma) for method in ("block", "token")] for gamma in (1, 2, 3)
        )
        gains = [block / token for block, token in by_gamma]
        print(f"{drafter}: {gains}")
        assert abs(gains[0] - 1) < 1e-6 and 1.005 < gains[1] < gains[2]
    for method in METHODS:
        assert abs(accepted_on_average(method, "identical", 3) - 3) < 1e-6
