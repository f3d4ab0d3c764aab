"""The cost model: what the speed-up should be, from acceptance and from the time of each stage by itself.

    speed-up = tokens per round x t_autoregressive / (t_draft + t_verify + t_accept)

Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.8, with the time of a whole draft in place of gamma times their cost c: the
first steps of a round read the drafter's weights from memory, later ones find them in a cache.  So a draft is measured for each
gamma, and where it stands, behind a verify.  And with verify's own time in place of one step's: a pass over gamma + 1 tokens is
not free.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoding.options import Options
from decoding.round import AcceptFn
from decoding.stages.accept import Acceptance, accept_greedy
from decoding.stages.draft import Draft
from gemma4.functional import argmax


class Times(NamedTuple):
    """Seconds of each stage by itself, for one gamma."""

    autoregressive: float
    draft: float
    verify: float
    accept: float


def speed_up(tokens_per_round: float, times: Times) -> float:
    """tokens_per_round: what acceptance makes of a round, 1 .. gamma + 1."""
    return tokens_per_round * times.autoregressive / (times.draft + times.verify + times.accept)


def simulated(rate: float) -> AcceptFn:
    """A stand-in for acceptance that agrees with each draft by chance, `rate` of the time.  The text means nothing then.

    For models with random weights, whose drafts are never right.
    """

    def judge(logits: jax.Array, block: Draft, options: Options, key: jax.Array) -> Acceptance:
        agrees = jax.random.uniform(key, block.tokens.shape) < rate
        choices = argmax(logits)
        # Greedy acceptance of what agrees by construction, and of what cannot: no token is below 0.
        return accept_greedy(logits, jnp.where(agrees, choices[:, :-1], -1))

    return judge
