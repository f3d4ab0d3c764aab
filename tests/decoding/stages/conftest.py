"""What the stages of a round are given: a target with shared K/V, a drafter with a clustered head, the state after a prompt."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import gemma4
from decoding import Verification
from drafter import Drafter
from gemma4 import Gemma4, KVCache
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target, random_tokens

GAMMA, WRITTEN = 4, 9
LENGTHS = np.array([9, 5])  # committed tokens of each row


class Pair(NamedTuple):
    target: Gemma4
    draft_model: Drafter


class Before(NamedTuple):
    """What a round begins with."""

    cache: KVCache
    token: jax.Array  # of each row the newest token, which is not in the cache yet
    hidden: jax.Array  # the hidden state that predicted it


@pytest.fixture(scope="session")
def pair() -> Pair:
    return Pair(random_target(TINY["E2B"]), random_drafter(TINY_DRAFTERS["E2B"]))


@pytest.fixture(scope="session")
def before(pair) -> Before:
    cache = gemma4.init_cache(pair.target.config, 2, 32, chunk=WRITTEN)
    out = gemma4.forward(pair.target, random_tokens(2, WRITTEN), cache)
    hidden = out.hidden[jnp.arange(2), LENGTHS - 1]
    return Before(gemma4.truncate(out.cache, jnp.array(LENGTHS, jnp.int32)), jnp.array([7, 11], jnp.int32), hidden)


@pytest.fixture(scope="session")
def drafts() -> jax.Array:
    return jnp.array([[3, 5, 8, 13], [21, 34, 2, 1]], jnp.int32)


@pytest.fixture(scope="session")
def verified(pair, before, drafts) -> Verification:
    """`verify` of these drafts.  Jitted, because its operations one by one take longer to compile."""
    return jax.jit(decoding.verify)(pair.target, before.cache, before.token, drafts)
