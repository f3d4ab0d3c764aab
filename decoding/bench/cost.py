"""The cost model: what the speed-up should be, from acceptance and from the time of each stage by itself.

    speed-up = tokens per round x t_autoregressive / (t_first_draft + (gamma - 1) x t_further_draft + t_verify + t_accept)

Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.8, with their cost c of a draft step as measured, twice: the first step of
a round reads the drafter's weights from memory, the others may find them in a cache.  Both are measured where they stand,
behind a verify, the first for each gamma.  And with verify's own time in place of one step's: a pass over gamma + 1 tokens
is not free.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoding.accept import Acceptance, accept_greedy
from decoding.draft import Draft
from decoding.speculative import Judge, Options
from gemma4.functional import argmax


class Times(NamedTuple):
    """Seconds of each stage by itself."""

    autoregressive: float
    first_draft: float
    further_draft: float
    verify: float
    accept: float


def speed_up(tokens_per_round: float, draft_length: int, times: Times) -> float:
    """tokens_per_round: what acceptance makes of a round, 1 .. draft_length + 1."""
    drafts = times.first_draft + (draft_length - 1) * times.further_draft
    return tokens_per_round * times.autoregressive / (drafts + times.verify + times.accept)


def simulated(rate: float) -> Judge:
    """A stand-in for acceptance that agrees with each draft by chance, `rate` of the time.  The text means nothing then.

    For models with random weights, whose drafts are never right.
    """

    def judge(logits: jax.Array, block: Draft, options: Options, key: jax.Array) -> Acceptance:
        agrees = jax.random.uniform(key, block.tokens.shape) < rate
        choices = argmax(logits)
        # Greedy acceptance of what agrees by construction, and of what cannot: no token is below 0.
        return accept_greedy(logits, jnp.where(agrees, choices[:, :-1], -1))

    return judge
