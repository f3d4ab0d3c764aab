"""The law of one round is the target's, to a total variation of 1e-6, for every drafter and for both ways to accept: by the
oracle's enumeration.

`decoding/oracle/law_check.py` says how it is exact, and has the toy models.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from decoding import Sampling
from decoding.fast.jit import compiler_options
from decoding.oracle.known_bugs.mutant import Variant
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
    count_until,
    emitted_law,
    steps_of,
    tables,
    target_law,
    total_variation,
)
from decoding.sampling import MIN_TEMPERATURE, pass_mark, sample_from, token_probs
from decoding.stages.accept import accept, accept_greedy, decide
from decoding.stages.accept_block import accept_block, decide_block
from gemma4.functional import argmax, softcap


@functools.cache
def law_of(which: str, sampling: Sampling) -> np.ndarray:
    """[prefix, token], float32: what the code works with."""
    return np.asarray(
        jax.jit(token_probs, static_argnums=1)(TARGET if which == "target" else DRAFTERS[which], sampling)
    )


def law_of_choose(probs: np.ndarray) -> np.ndarray:
    """The law, float64, that `choose` really draws from."""
    rows, tokens = jnp.asarray(probs)[:, None], np.arange(probs.shape[-1])
    at_most = count_until(lambda u: choose_jit(rows, u) <= tokens, probs.shape)
    return np.diff(at_most, axis=-1, prepend=0) / GRID


@jax.jit
def choose_jit(rows, uniforms):
    return sample_from(jnp.broadcast_to(rows, (*uniforms.shape, rows.shape[-1])), uniforms)


DECIDERS = {"token": decide, "block": decide_block}
each_rule = pytest.mark.parametrize("rule", DECIDERS)


def honest(
    target: np.ndarray,
    drafts: np.ndarray,
    told: np.ndarray | None = None,
    rule: str = "token",
    decide: Decide | None = None,
) -> Round:
    """A round that draws from `drafts` with `choose`, and decides by a rule (or as `decide` does), told the law or another."""
    decide = jax.jit(decide or DECIDERS[rule])
    return Round(target, law_of_choose(drafts), drafts if told is None else told, decide, by_block=rule == "block")


@each_rule
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_a_round_emits_the_targets_law(gamma, setting, rule):
    """Total variation at most 1e-6, for drafters from identical to opposed; what is impossible never happens."""
    sampling, draft_sampling = SETTINGS[setting]
    target = law_of("target", sampling)
    for draft_model in DRAFTERS:
        drafts = law_of(draft_model, draft_sampling)
        joint = emitted_law(honest(target, drafts, rule=rule), gamma)
        reference = target_law(target, (), gamma + 1)
        assert abs(joint.sum() - 1) < 1e-9 and not joint[reference == 0].any()
        distance = total_variation(joint, reference)
        print(f"{rule}, {setting}, {drafter}, gamma {gamma}: total variation {distance:.1e}")
        assert distance <= TOLERANCE, f"{drafter}: {distance:.1e}"


@each_rule
def test_the_thresholds_say_what_decide_does(rule):
    """4000 random rows of uniforms, any setting: the thresholds that bisection found foretell each decision."""
    rng, gamma = np.random.default_rng(0), LONGEST
    fast = jax.jit(DECIDERS[rule])
    for sampling, draft_sampling in SETTINGS.values():
        probs = law_of("unrelated", draft_sampling)
        this = tables(honest(law_of("target", sampling), probs), gamma)
        steps = steps_of(fast, *this)
        points = rng.integers(0, GRID, (len(this[1]), 8, gamma + 1))
        num_accepted, next_token = beside_a_rejected_row(fast, *this, (points / GRID).astype(np.float32))
        for row, question in np.ndindex(num_accepted.shape):
            point = points[row, question]
            refused = point[:-1] >= steps.accept[row]
            first, after_last = np.flatnonzero([*refused, True])[0], np.flatnonzero([True, *~refused])[-1]
            count = after_last if rule == "block" else first
            assert num_accepted[row, question] == count
            assert next_token[row, question] == (point[-1] >= steps.next_at_most[row, count]).sum()


@pytest.mark.parametrize(("rule", "accept"), [("token", accept), ("block", accept_block)])
def test_accept_is_decide_with_uniform_numbers(rule, accept):
    """2000 rows: `accept` decides as often each way as the thresholds say (chi-square, at a level of 1e-4, seeded)."""
    gamma, count = 2, 2000
    target, drafts = law_of("target", FULL), law_of("close", FULL)
    target_probs, tokens, draft_probs = tables(honest(target, drafts), gamma)
    steps = steps_of(jax.jit(DECIDERS[rule]), target_probs, tokens, draft_probs)
    row = int(np.argmin(np.abs(steps.accept[:, 0] / GRID - 0.6)))  # accepted more often than not, but not always
    same = lambda x: jnp.asarray(np.repeat(x[row : row + 1], count, axis=0))
    out = jax.jit(accept)(same(target_probs), same(tokens), same(draft_probs), jax.random.key(1))
    seen = np.zeros((gamma + 1, VOCAB))
    np.add.at(seen, (np.asarray(out.num_accepted), np.asarray(out.next_token)), 1)
    stops = steps.stops(by_block=rule == "block")[row]
    expected = count * stops[:, None] * np.diff(steps.next_at_most[row], axis=1, prepend=0) / GRID
    possible = expected > 0
    assert seen[~possible].sum() == 0
    statistic = (np.square(seen - expected)[possible] / expected[possible]).sum()
    assert statistic < scipy.stats.chi2.isf(1e-4, possible.sum() - 1)


@each_rule
def test_accept_greedy_is_accept_of_the_one_hot_law(rule):
    """Whole logits, so that many tie: decisions are those of `decide`, for any uniforms and any law of the drafts."""
    rng, rows, gamma = np.random.default_rng(0), 4000, LONGEST
    logits = rng.integers(-2, 3, (rows, gamma + 1, VOCAB)).astype(np.float32)
    drafts, uniforms = rng.integers(0, VOCAB, (rows, gamma)), rng.integers(0, GRID, (rows, gamma + 1)) / GRID
    draft_probs = rng.dirichlet(np.ones(VOCAB), (rows, gamma)).astype(np.float32)
    drafts, uniforms = jnp.asarray(drafts, jnp.int32), jnp.asarray(uniforms, jnp.float32)
    expected = DECIDERS[rule](token_probs(jnp.asarray(logits), Sampling()), drafts, jnp.asarray(draft_probs), uniforms)
    for ours, reference in zip(accept_greedy(jnp.asarray(logits), drafts), expected, strict=True):
        np.testing.assert_array_equal(ours, reference)
    assert set(np.asarray(expected.num_accepted).tolist()) == set(range(gamma + 1))


# -- wrong ways to run a round, most of them from other engines --------------------------------------------------------


def changed(rule: str, change: dict[str, str]) -> Decide:
    """How a rule decides with some of its text replaced."""
    function = {"token": "decoding.stages.accept.decide", "block": "decoding.stages.accept_block.decide_block"}[rule]
    return Variant(name="changed", what="", function=function, change=change).compiled()


def one_sided(rule: str, change: dict[str, str]) -> Callable[[], Round]:
    return lambda: honest(P(), Q(), Q(), rule, changed(rule, change))


P, Q, GREEDY = (lambda: law_of("target", FULL)), (lambda: law_of("unrelated", FULL)), Sampling()
UNNORMALISED = {
    "choose(rest, uniforms[:, -1])": "jnp.argmax(jnp.cumsum(rest, axis=-1) > uniforms[:, -1:], axis=-1).astype(jnp.int32)"
}
MUTANTS: dict[str, Callable[[], Round]] = {
    # transformers #47932, KerasHub 0.32, z-lab/dflash #74
    "greedy drafts, told softmax": lambda: honest(P(), law_of("unrelated", GREEDY), Q()),
    # transformers #28508
    "softmax of the residual": one_sided(
        "token", {"residual(": "(lambda p, q: jax.nn.softmax(jnp.maximum(p - q, 0), axis=-1))("}
    ),
    # mlxcel #902
    "accept iff it is the argmax": one_sided(
        "token",
        {"uniforms[:, :-1] * q < p": "draft_tokens == argmax(target_probs[:, :-1])", "residual(": "(lambda p, q: p)("},
    ),
    "residual not renormalised": one_sided("token", UNNORMALISED),
    "correction from the whole law": one_sided("token", {"residual(": "(lambda p, q: p)("}),
    # KerasHub 0.32: the shortest run of the batch counts for all, and the bonus is a residual for all
    "least count of the batch": one_sided(
        "token",
        {"count_leading(uniforms[:, :-1] * q < p)": "jnp.full(len(p), count_leading(uniforms[:, :-1] * q < p).min())"},
    ),
    "residual after full acceptance": one_sided(
        "token", {"with_none_last(draft_probs)": "jnp.concatenate([draft_probs, draft_probs[:, -1:]], axis=1)"}
    ),
    "drafts tempered, told untempered": lambda: honest(P(), law_of("unrelated", Sampling(0.6)), Q()),
    "drafts untempered, told tempered": lambda: honest(P(), Q(), law_of("unrelated", Sampling(0.6))),
    "drafts cut by top-k, told uncut": lambda: honest(P(), law_of("unrelated", Sampling(1.0, top_k=2)), Q()),
    # vllm-ascend #7807: by block, with the residual of single tokens
    "block: residual without weights": one_sided(
        "block", {"residual(at_stop(weighted, ": "residual(at_stop(target_probs, "}
    ),
    "block: residual not renormalised": one_sided("block", UNNORMALISED),
    "block: accepted by weight alone": one_sided(
        "block", {"(over + (1 - weights))[:, 1:] < over[:, 1:]": "1 < weights[:, 1:]"}
    ),
    "block: the first refusal ends the run": one_sided(
        "block", {"jnp.where(accepted, ": "jnp.where(jnp.cumprod(accepted, axis=1) > 0, "}
    ),
    "block: weights not capped": one_sided(
        "block",
        {
            "run_weights(of": "(lambda p, q: jnp.pad(jnp.cumprod(p / q, axis=1), ((0, 0), (1, 0)), constant_values=1))(of"
        },
    ),
    "block: weight of one draft alone": one_sided(
        "block",
        {"run_weights(of": "(lambda p, q: jnp.pad(jnp.minimum(p / q, 1), ((0, 0), (1, 0)), constant_values=1))(of"},
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_known_mistake_is_caught(mutant):
    """Each is off by a total variation of 1e-3 at least: a thousand times what the test of the real thing allows."""
    round = MUTANTS[mutant]()
    distance = total_variation(emitted_law(round, LONGEST), target_law(round.target, (), LONGEST + 1))
    print(f"{mutant}: total variation {distance:.3f}")
    assert distance > 1e-3


def accepted_on_average(rule: str, draft_model: str, gamma: int) -> float:
    """The number of drafts, over all drafts and random numbers."""
    round = honest(P(), law_of(draft_model, FULL), rule=rule)
    this = tables(round, gamma)
    stops = steps_of(round.decide, *this).stops(round.by_block)
    drawn = np.prod(np.take_along_axis(this[2], this[1][..., None], axis=2)[..., 0], axis=1, dtype=np.float64)
    return drawn @ stops @ np.arange(gamma + 1)


def test_by_block_more_drafts_are_accepted():
    """On average, and by how much; as many for one draft, and for a drafter that is the target itself."""
    for draft_model in ("unrelated", "close", "opposed"):
        gains = [
            accepted_on_average("block", draft_model, g) / accepted_on_average("token", draft_model, g)
            for g in (1, 2, 3)
        ]
        print(f"{drafter}: {gains}")
        assert abs(gains[0] - 1) < 1e-6 and 1.005 < gains[1] < gains[2]
    for rule in DECIDERS:
        assert abs(accepted_on_average(rule, "identical", 3) - 3) < 1e-6


def test_a_cut_on_one_side_alone_is_another_law():
    """Acceptance that forgets the target's top-p emits the uncut law: the distance to the cut one is seen."""
    cut, uncut, drafts = law_of("target", Sampling(1.0, top_p=0.8)), law_of("target", FULL), law_of("close", FULL)
    assert total_variation(emitted_law(honest(uncut, drafts), 1), target_law(cut, (), 2)) > 0.05


# -- law and choose ----------------------------------------------------------------------------------------------------


def test_law_edges():
    """Ties at the top-k edge all stay; a tiny top-p keeps the best token; greedy takes the lowest id of equals."""
    logits = jnp.array([[1.0, 3.0, 3.0, 0.0, -jnp.inf]])
    of = lambda *sampling: np.asarray(token_probs(logits, Sampling(*sampling)))[0]
    np.testing.assert_array_equal(of(0.0), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(of(1.0, 1), [0, 0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(of(1.0, 0, 1e-6), [0, 1, 0, 0, 0])
    np.testing.assert_allclose(of(1.0, 99), of(1.0), rtol=0, atol=0)
    assert of(1.0)[4] == 0 and of(0.5, 4, 0.999)[4] == 0
    np.testing.assert_allclose(of(2.0)[:4], np.exp([0.5, 1.5, 1.5, 0]) / np.exp([0.5, 1.5, 1.5, 0]).sum(), rtol=1e-6)


def test_law_by_hand():
    """The token that crosses top-p stays; top-p comes after the temperature and after top-k."""
    of = lambda *sampling: np.asarray(token_probs(jnp.log(jnp.array([0.2, 0.5, 0.3])), Sampling(*sampling)))
    np.testing.assert_allclose(of(1.0, 0, 0.6), [0, 0.625, 0.375], atol=1e-6)
    np.testing.assert_allclose(of(0.5, 0, 0.6), [0, 1, 0], atol=1e-6, err_msg="0.25 of 0.38 is more than 0.6")
    np.testing.assert_allclose(of(1.0, 2, 0.6), [0, 1, 0], atol=1e-6, err_msg="0.5 of 0.8 is more than 0.6")
    assert token_probs(jnp.zeros(4, jnp.bfloat16), Sampling(1.0)).dtype == jnp.float32


@pytest.mark.parametrize("temperature", [0.99 * MIN_TEMPERATURE, 1e-17, 1e-40])
def test_a_law_near_the_absolute_zero_is_the_greedy_one(temperature):
    sampling = Sampling(temperature).check()
    for _, probs, logits in behind_a_head(sampling):
        np.testing.assert_array_equal(probs, token_probs(logits, Sampling(0.0)))


def test_the_coldest_law_that_is_none():
    """Whichever way the logits were rounded, the law is one, and likeliest tokens are likeliest."""
    for cold, probs, _ in behind_a_head(Sampling(MIN_TEMPERATURE).check()):
        np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-5)
        assert (jnp.take_along_axis(probs, cold[:, None], axis=-1)[:, 0] > 0.3).all()


def behind_a_head(sampling: Sampling):
    """Argmax, law and logits, compiled together, as a round is: the law may see other roundings of them than its maximum."""

    def run(hidden, table):
        logits = softcap(hidden @ table.T, 30.0)
        return argmax(logits), token_probs(logits, sampling), logits

    run = jax.jit(run, compiler_options=compiler_options())
    for seed in range(10):
        hidden, table = (jax.random.normal(jax.random.key(seed + i), (rows, 256)) for i, rows in enumerate((5, 2048)))
        yield run(hidden, table / 10)


EDGES = np.array([0, 1, 2, GRID // 2, GRID - 2, GRID - 1]) / GRID


def test_choose_takes_tokens_in_order_of_id():
    """u = 0 takes the first token that is possible, u = 1 - 2^-23 the last; weights need not sum to 1."""
    weights = jnp.array([0, 2, 0, 5, 1, 0], jnp.float32)
    chosen = np.asarray(sample_from(jnp.tile(weights, (len(EDGES), 1)), jnp.asarray(EDGES, jnp.float32)))
    np.testing.assert_array_equal(chosen, [1, 1, 1, 3, 4, 4])
    for token in range(6):
        certain = jnp.tile(jax.nn.one_hot(token, 6), (len(EDGES), 1))
        np.testing.assert_array_equal(sample_from(certain, jnp.asarray(EDGES, jnp.float32)), token)


def in_one_block(probs, uniform):
    """`choose` as it takes a token of one block, for blocks of any size: Gemma's have 512."""
    return pass_mark(probs, uniform * probs.sum())[0]


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 300])
def test_choose_draws_from_the_law(vocabulary):
    """Token by token to the grain of the uniforms, where blocks of tokens end and elsewhere."""
    logits = np.random.default_rng(vocabulary).normal(0, 1, vocabulary).astype(np.float32)
    probs = np.float64(token_probs(jnp.asarray(logits), Sampling(1.0)))
    np.testing.assert_allclose(law_of_choose(probs[None])[0], probs / probs.sum(), rtol=0, atol=4 / GRID)


@pytest.mark.parametrize(
    ("pick", "vocabulary"),
    [
        (sample_from, 5),
        (sample_from, 512),
        (sample_from, 2048),
        (sample_from, 20_000),
        (in_one_block, 512),
        (in_one_block, 2048),
    ],
)
def test_choose_never_takes_an_impossible_token(pick, vocabulary):
    """At and beside every threshold of laws that are zero on seven tokens of eight, and at the extreme uniforms.

    In float32 a parallel running sum may rise by a rounding error at a token of probability 0.
    """
    draw = jax.jit(jax.vmap(pick, in_axes=(None, 0)))
    for seed in range(4):
        logits = np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)
        probs = jax.jit(token_probs, static_argnums=1)(logits, Sampling(1.0, top_k=max(2, vocabulary // 8)))
        sums = np.cumsum(np.float64(probs))[np.asarray(probs) > 0]
        near = np.floor(sums / sums[-1] * GRID)[:, None] + np.arange(-2, 3)
        uniforms = np.append(np.clip(near, 0, GRID - 1).reshape(-1)[: 5 * 600] / GRID, EDGES).astype(np.float32)
        chosen = np.asarray(draw(probs, jnp.asarray(np.resize(uniforms, 5 * 600 + len(EDGES)))))
        assert (np.asarray(probs)[chosen] > 0).all()
