"""A prefill runs what writes no K/V for one token a row, and leaves the same hidden row and the same cache, with room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding.checks import LONGEST_DRAFT
from gemma4 import init_cache
from gemma4.config import FULL
from tests.tiny import TINY, WINDOW, random_target, random_tokens

TIME = 2 * WINDOW + 3
LAST = np.array([0, TIME - 1, WINDOW])  # the row of each prompt that is wanted


@pytest.mark.parametrize("layout", list(TINY))
def test_only_one_row(layout):
    config = TINY[layout]
    target, tokens = random_target(config), random_tokens(len(LAST), TIME)
    cache = init_cache(config, len(LAST), 2 * TIME)
    rows, expected_cache = jax.jit(lambda *args: target(*args))(tokens, cache)
    only, cache = jax.jit(lambda *args: target(*args, only=jnp.asarray(LAST)))(tokens, cache)
    expected = np.asarray(rows)[np.arange(len(LAST)), LAST]
    assert only.shape == (len(LAST), 1, config.hidden_size)
    np.testing.assert_allclose(only[:, 0], expected, atol=2e-5 * np.abs(expected).max())
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5)
    jax.tree.map(close, cache, expected_cache)


@pytest.mark.parametrize("layout", ["E2B", "31B"])
def test_what_writes_no_kv_runs_for_that_row_alone(layout):
    """The last owner of K/V writes them for all tokens, and asks for one; layers behind it see that one only."""
    config, times = TINY[layout], {}

    def tap(name, value):
        times[name] = value.shape[1]
        return value

    target, tokens, cache = random_target(config), random_tokens(len(LAST), TIME), init_cache(config, len(LAST), TIME)
    jax.eval_shape(lambda: target(jnp.asarray(tokens), cache, tap, only=jnp.asarray(LAST)))
    last_owner = config.num_hidden_layers - config.num_kv_shared_layers - 1
    expected = [TIME if layer < last_owner else 1 for layer in range(config.num_hidden_layers)]
    for point in ("query", "output"):
        assert [times[f"layers.{layer}.{point}"] for layer in range(config.num_hidden_layers)] == expected
    assert times["hidden"] == 1


def test_room_for_the_last_rounds_drafts():
    """With a short prompt and a context exactly full: what does not fit would be written over the first tokens."""
    target, prompt = random_target(TINY["E2B"]), 16 * [2]
    new_tokens = target.config.max_position_embeddings - len(prompt)
    settings = {"draft_length": LONGEST_DRAFT, "key": jax.random.key(0)}
    state = decoding.prefill(target, prompt, max_new_tokens=new_tokens, **settings)
    full = state.cache.layers[target.config.donors[FULL]]
    assert full.capacity >= len(prompt) + new_tokens + LONGEST_DRAFT
