"""The cost model: what the speed-up should be, from acceptance and from the time of each stage alone.

    speed-up = tokens per round x t_autoregressive / (t_draft + t_verify + t_accept)

Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.8, with two changes.  The time of a whole draft replaces gamma times their
cost c: the first steps of a round read the drafter's weights from memory, later ones find them in a cache.  So a draft is
measured for each gamma, and behind a verify, as in a round.  And verify has a time of its own in place of one step's: a pass
over gamma + 1 tokens is not free.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoding.options import Options
from decoding.round import AcceptFn
from decoding.stages.accept import Acceptance, accept_greedy
from decoding.stages.draft import Draft


class Times(NamedTuple):
    """Seconds of each stage alone, for one gamma."""

    autoregressive: float
    draft: float
    verify: float
    accept: float


def speed_up(tokens_per_round: float, times: Times) -> float:
    """tokens_per_round: what a round yields at the given acceptance, 1 .. gamma + 1."""
    return tokens_per_round * times.autoregressive / (times.draft + times.verify + times.accept)


def reached(rate: float, gamma: int) -> list[float]:
    """The probability that drafts 1, 1..2, .. 1..gamma are accepted, if each is with probability `rate` (Leviathan, eq. 1)."""
    return [rate**i for i in range(1, gamma + 1)]


def tokens_per_round(acceptance: Sequence[float], gamma: int | None = None) -> float:
    """What a round yields: the target's own token, and each draft with the probability that it and all before it are accepted.

    acceptance: as `reached`, and as engines print it by draft position.
    gamma: how many drafts, if not all of those.  If it is longer, the last ratio goes on.
    """
    gamma = len(acceptance) if gamma is None else gamma
    known = list(acceptance[:gamma])
    last = known[-1] / (known[-2] if len(known) > 1 else 1.0) if known and known[-1] else 0.0
    while len(known) < gamma:
        known.append(known[-1] * last)
    return 1.0 + sum(known)


def break_even(gamma: int, times: Times) -> float | None:
    """The probability of accepting each draft at which a round is as fast as steps; None if even 1 does not suffice."""
    needed = 1 / speed_up(1.0, times)  # tokens per round
    if needed > gamma + 1:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if 1 + sum(reached(middle, gamma)) < needed else (low, middle)
    return high


def simulated(rate: float) -> AcceptFn:
    """In place of acceptance: each draft is accepted with probability `rate`.  The text has no meaning then.

    For models with random weights, whose drafts are never right.
    """

    def accept(logits: jax.Array, drafted: Draft, options: Options, key: jax.Array) -> Acceptance:
        agrees = jax.random.uniform(key, drafted.tokens.shape) < rate
        choices = options.kernels.argmax(logits)
        # Greedy acceptance of drafts that equal the target's choice, or cannot: no token is below 0.
        return accept_greedy(logits, jnp.where(agrees, choices[:, :-1], -1), options.kernels)

    return accept
