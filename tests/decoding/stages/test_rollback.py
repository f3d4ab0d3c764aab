"""Stage 5: the rejected drafts are forgotten."""

import inspect

import jax.numpy as jnp

import decoding
from tests.decoding.stages.conftest import GAMMA, LENGTHS


def test_rollback_changes_the_length_and_nothing_else(before, verified):
    after = decoding.rollback(verified.cache, before.cache.length, jnp.array([1, GAMMA + 1]))
    assert after.length.tolist() == [LENGTHS[0] + 1, LENGTHS[1] + GAMMA + 1]
    assert all(ours is theirs for ours, theirs in zip(after.layers, verified.cache.layers, strict=True))


def test_lengths_may_be_lists(before):
    """They are added, not joined."""
    rollback = inspect.unwrap(decoding.rollback)  # without the annotations, which are checked in tests alone
    assert rollback(before.cache, [3, 2], [1, 4]).length.tolist() == [4, 6]
