"""What a round hands to the next one."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding import DecodeState, Round
from decoding.state import advance
from gemma4 import KVCache

PROMPT_LENGTHS = np.array([5, 9, 2, 3])
# Row 0 accepted both drafts, row 1 one of them, row 2 was done before, row 3 ends with its first draft.
LAST = Round(
    draft_tokens=jnp.array([[10, 11], [12, 13], [14, 15], [16, 17]]),
    num_accepted=jnp.array([2, 1, 2, 1]),
    tokens=jnp.array([[10, 11, 50], [12, 51, 13], [14, 15, 52], [16, 53, 17]]),
    num_emitted=jnp.array([3, 2, 0, 1]),
)
DONE = jnp.array([False, False, True, True])


def state_before() -> DecodeState:
    emitted = jnp.array([1, 4, 7, 2])
    return DecodeState(
        cache=KVCache((), jnp.array(PROMPT_LENGTHS) + emitted - 1),
        token=jnp.array([20, 21, 22, 23]),
        hidden=jnp.full((4, 2), -1.0),
        key=jax.random.key(0),
        emitted=emitted,
        budget=jnp.array([9, 9, 7, 9]),
        done=jnp.array([False, False, True, False]),
        last=LAST,
        is_finite=jnp.array([True, True, True, False]),
    )


def after() -> DecodeState:
    before = state_before()
    hidden = jnp.arange(24.0).reshape(4, 3, 2)  # of [token, d1, d2]
    cache = before.cache._replace(length=before.cache.length + LAST.num_emitted)  # as `rollback` leaves it
    logits = jnp.full((4, 3, 5), -jnp.inf).at[..., 2].set(1.0).at[1, 2, 3].set(jnp.nan)
    return advance(before, LAST, hidden, logits, cache, jax.random.key(1), DONE)


def test_the_newest_token_is_the_last_emitted_one():
    assert after().token.tolist() == [50, 51, 22, 16], "row 2 keeps what it had"


def test_the_hidden_state_is_that_which_predicted_the_newest_token():
    """Hidden state i predicts tokens[i].  A row that was done keeps what it had."""
    assert after().hidden.tolist() == [[4.0, 5.0], [8.0, 9.0], [-1.0, -1.0], [18.0, 19.0]]


def test_counts_and_the_rest():
    state = after()
    assert state.emitted.tolist() == [4, 6, 7, 3]
    assert state.budget.tolist() == [9, 9, 7, 9] and state.done is DONE and state.last is LAST
    assert (jax.random.key_data(state.key) == jax.random.key_data(jax.random.key(1))).all()


def test_numbers_that_are_not_finite_are_remembered():
    """Row 1 has a NaN among its logits, row 3 had one before; -inf is a logit like others."""
    assert after().is_finite.tolist() == [True, False, True, False]


def test_invariant():
    """cache.length == prompt length + emitted - 1, in rows that ended, too."""
    for state in (state_before(), after()):
        np.testing.assert_array_equal(state.cache.length, PROMPT_LENGTHS + state.emitted - 1)
