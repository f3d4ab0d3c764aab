"""The distribution of one round, by exact enumeration, for any implementation of acceptance.

Why it is exact: a toy target and a toy drafter are tables that hold a distribution over four tokens for each prefix.  For
every possible draft, acceptance is a function of uniform numbers from a grid of 2^23 values (those of `jax.random.uniform`).
It changes at thresholds, which bisection finds to the grid point; counting grid points gives every probability without
sampling and without a look inside.  A round emits 1 .. gamma + 1 tokens.  The target itself completes each run to gamma + 1
tokens, and the joint distribution of these must be the target's.  Only the grid is left as an error: each threshold is off by
at most 2^-23 = 1.2e-7.

Rows must be independent: every row is decided beside another one, whose first draft is rejected.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from decoding.oracle.engine import Decision, Engine
from decoding.sampling import Sampling

GRID = 2**23
LARGEST = np.float32((GRID - 1) / GRID)  # of the grid
VOCAB, LONGEST = 4, 3
TOLERANCE = 1e-6

Decide = Callable[..., Decision]  # Engine.accept, or Engine.accept_block


# -- toy models --------------------------------------------------------------------------------------------------------

PREFIXES = [prefix for length in range(LONGEST + 1) for prefix in itertools.product(range(VOCAB), repeat=length)]
INDEX = {prefix: index for index, prefix in enumerate(PREFIXES)}


def logits_of(seed: int) -> np.ndarray:
    """Logits for each prefix, [prefix, token]."""
    return np.random.default_rng(seed).normal(0, 1.5, (len(PREFIXES), VOCAB)).astype(np.float32)


TARGET = logits_of(1)
DRAFTERS = {
    "unrelated": logits_of(2),
    "close": TARGET + 0.3 * logits_of(3),
    "identical": TARGET,
    "opposed": -4 * TARGET,
}

FULL = Sampling(1.0)
SETTINGS = {
    # name: (of the target, of the drafter)
    "plain": (FULL, FULL),
    "greedy drafts": (FULL, Sampling()),
    "greedy target": (Sampling(), FULL),
    "both greedy": (Sampling(), Sampling()),
    "temperatures": (Sampling(0.7), Sampling(1.6)),
    "top-k of the target": (Sampling(1.0, top_k=2), FULL),
    "top-p of the target": (Sampling(1.0, top_p=0.8), FULL),
    "top-k and top-p of both": (Sampling(1.3, top_k=3, top_p=0.9), Sampling(0.6, top_k=2, top_p=0.95)),
}


# -- counting grid points ----------------------------------------------------------------------------------------------


def count_until(holds: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """For each element, how many k = 0, 1, .. of the grid hold before the first that does not (bisection)."""
    low, high = np.zeros(shape, np.int64), np.full(shape, GRID)
    while (low < high).any():
        middle = (low + high) // 2
        yes = np.asarray(holds((middle / GRID).astype(np.float32))) & (low < high)
        low, high = np.where(yes, middle + 1, low), np.where(yes, high, np.minimum(middle, high))
    return low


class Steps(NamedTuple):
    """How each possible draft is decided: the grid points, of GRID, for each event."""

    accept: (
        np.ndarray
    )  # [draft, index]: its token `index` is accepted, if those before it are and those after it are not
    next_at_most: np.ndarray  # [draft, number accepted, token]: the next token is at most `token`

    def stops(self, by_block: bool) -> np.ndarray:
        """[draft, number accepted]: the probability of accepting so many.

        Token by token these are the ones before the first rejection; by block, the ones up to the last acceptance.
        """
        probs, certain = self.accept / GRID, np.ones((len(self.accept), 1))
        accepts = np.concatenate([certain, probs], axis=1)  # of the token before index i; nothing is before index 0
        rejects = np.concatenate([1 - probs, certain], axis=1)  # of the token at index i; nothing is after the last
        if by_block:
            return accepts * np.cumprod(rejects[:, ::-1], axis=1)[:, ::-1]
        return np.cumprod(accepts, axis=1) * rejects


def steps_of(decide: Decide, target_probs: np.ndarray, drafts: np.ndarray, draft_probs: np.ndarray) -> Steps:
    """Find all thresholds by bisection.

    To test the acceptance of draft i, drafts before it get u = 0 (accepted) and those after it the largest u (rejected).  To
    test the next token after n drafts, n of them get u = 0 and the rest the largest.
    """
    count, gamma = drafts.shape
    indices, counts, tokens = np.arange(gamma), np.arange(gamma + 1), np.arange(VOCAB)

    # All questions of both kinds are rows of one call: [draft, question].
    forced = np.where(indices < counts[:, None], 0, LARGEST)  # [n, index]: n are accepted
    forced = np.repeat(forced[:, None], VOCAB, axis=1).reshape(-1, gamma)
    questions = gamma + len(forced)

    def holds(u: np.ndarray) -> np.ndarray:
        uniforms = np.zeros((count, questions, gamma + 1), np.float32)
        for i in indices:
            uniforms[:, i, :-1] = np.where(indices == i, u[:, i, None], np.where(indices < i, 0, LARGEST))
        uniforms[:, gamma:, :-1] = forced
        uniforms[:, gamma:, -1] = u[:, gamma:]
        num_accepted, next_token = beside_a_rejected_row(decide, target_probs, drafts, draft_probs, uniforms)
        accepted = num_accepted[:, :gamma] > indices
        return np.concatenate([accepted, next_token[:, gamma:] <= np.tile(tokens, gamma + 1)], axis=1)

    found = count_until(holds, (count, questions))
    return Steps(found[:, :gamma], found[:, gamma:].reshape(count, gamma + 1, VOCAB))


def beside_a_rejected_row(
    decide: Decide, target_probs: np.ndarray, drafts: np.ndarray, draft_probs: np.ndarray, uniforms: np.ndarray
) -> Decision:
    """decide(...) for uniforms [draft, question, index], each with a row beside it whose first draft is rejected."""
    questions = uniforms.shape[1]

    def each(x: np.ndarray) -> np.ndarray:
        return np.repeat(x, questions, axis=0)

    def one_hot(token: int, like: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.eye(VOCAB, dtype=np.float32)[token], like.shape)

    def with_other(ours: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.stack([ours, other], axis=1).reshape(-1, *ours.shape[1:])

    uniforms = uniforms.reshape(-1, uniforms.shape[-1])
    target_probs, drafts, draft_probs = each(target_probs), each(drafts), each(draft_probs)
    out = decide(
        with_other(target_probs, one_hot(0, target_probs)),
        with_other(drafts, np.ones_like(drafts)),
        with_other(draft_probs, one_hot(1, draft_probs)),
        with_other(uniforms, uniforms),
    )
    return Decision(*(np.asarray(value)[::2].reshape(-1, questions) for value in out))


# -- the distribution of a round ---------------------------------------------------------------------------------------


class Round(NamedTuple):
    """A way to run one round: the distributions, [prefix, token], and the method of acceptance."""

    target: np.ndarray
    drawn: np.ndarray  # the distribution that drafts are drawn from
    claimed: np.ndarray  # the draft distribution that acceptance receives
    decide: Decide
    by_block: bool = False  # a later draft may be accepted although an earlier one alone is not


def tables(round: Round, gamma: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """target_probs, drafts and draft_probs for every possible draft of `gamma` tokens."""
    drafts = np.array(list(itertools.product(range(VOCAB), repeat=gamma)), np.int32)
    prefixes = np.array([[INDEX[tuple(draft[:i])] for i in range(gamma + 1)] for draft in drafts])
    return round.target[prefixes], drafts, round.claimed[prefixes[:, :-1]]


def emitted_law(round: Round, gamma: int) -> np.ndarray:
    """Joint distribution of gamma + 1 tokens, float64 [v, .., v]: those the round emits, completed by the target."""
    target_probs, drafts, draft_probs = tables(round, gamma)
    steps = steps_of(round.decide, target_probs, drafts, draft_probs)
    joint = np.zeros((VOCAB,) * (gamma + 1))
    for (row, num_accepted), stops in np.ndenumerate(steps.stops(round.by_block)):
        draft = tuple(drafts[row].tolist())
        drawn = np.prod([np.float64(round.drawn[INDEX[draft[:i]], draft[i]]) for i in range(gamma)])
        next_probs = np.diff(steps.next_at_most[row, num_accepted], prepend=0) / GRID
        for token in np.flatnonzero(next_probs * drawn * stops):
            run = (*draft[:num_accepted], int(token))
            joint[run] += drawn * stops * next_probs[token] * target_law(round.target, run, gamma + 1 - len(run))
    return joint


def target_law(target: np.ndarray, prefix: tuple[int, ...], length: int) -> np.ndarray:
    """Joint distribution, float64 [v, .., v], of the target's next `length` tokens after a prefix."""
    if length == 0:
        return np.ones(())
    probs = np.asarray(target[INDEX[prefix]], np.float64)
    rest = [target_law(target, (*prefix, token), length - 1) for token in range(VOCAB)]
    return np.stack([p / probs.sum() * r for p, r in zip(probs, rest, strict=True)])


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).sum() / 2)


def distances(
    engine: Engine, gamma: int = 2, drafters: tuple[str, ...] = ("unrelated", "close"), by_block: bool = False
) -> dict[str, float]:
    """How far the text of an engine's rounds is from its target's distribution, in total variation.

    For each setting, the distance of the worst drafter.
    """
    out, decide = {}, engine.accept_block if by_block else engine.accept
    for name, (sampling, draft_sampling) in SETTINGS.items():
        target = np.asarray(engine.token_probs(TARGET, sampling), np.float32)
        for draft_model in drafters:
            drawn, claimed = engine.draft_probs(DRAFTERS[draft_model], draft_sampling)
            round = Round(target, drawn, np.asarray(claimed, np.float32), decide, by_block)
            distance = total_variation(emitted_law(round, gamma), target_law(target, (), gamma + 1))
            out[name] = max(distance, out.get(name, 0.0))
    return out
