"""Stage 2: one forward pass of the target over the newest token and all drafts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import gemma4
from gemma4 import Gemma4
from tests.decoding.stages.conftest import GAMMA, LENGTHS


def test_verify_is_one_forward_that_writes_all(pair, before, drafts, verified, monkeypatch):
    forwards, call = [], Gemma4.__call__

    def counted(self, tokens, *args):
        forwards.append(tokens.shape)
        return call(self, tokens, *args)

    monkeypatch.setattr(Gemma4, "__call__", counted)
    jax.eval_shape(lambda *args: decoding.verify(*args), pair.target, before.cache, before.token, drafts)
    assert forwards == [(2, GAMMA + 1)], "one pass over the newest token and all drafts"
    assert verified.cache.length.tolist() == (LENGTHS + GAMMA + 1).tolist()


def test_verify_equals_single_steps(pair, before, drafts, verified):
    """Position i holds what the target computes after [token, d1 .. dgamma][i]."""
    cache = before.cache
    for i, tokens in enumerate([before.token, *drafts.T]):
        out = gemma4.forward(pair.target, tokens[:, None], cache)
        cache = out.cache
        np.testing.assert_allclose(verified.logits[:, i], out.logits[:, 0], rtol=0, atol=1e-4, err_msg=f"position {i}")
        np.testing.assert_allclose(verified.hidden[:, i], out.hidden[:, 0], rtol=0, atol=1e-4, err_msg=f"position {i}")


def test_verify_of_ids_outside_the_vocabulary(pair, before, drafts):
    with pytest.raises(ValueError, match="token id 64 is out of range"):
        decoding.verify(pair.target, before.cache, before.token, drafts.at[1, 2].set(64))


def test_verify_of_another_batch_than_the_caches(pair):
    cache = gemma4.init_cache(pair.target.config, 1, 64)
    with pytest.raises(ValueError, match="the cache was built for batch 1, but tokens have batch 2"):
        decoding.verify(pair.target, cache, jnp.zeros(2, jnp.int32), jnp.zeros((2, 4), jnp.int32))


@pytest.mark.parametrize("is_jitted", [False, True])
def test_verify_of_more_drafts_than_the_cache_takes_at_once(pair, is_jitted):
    cache = gemma4.init_cache(pair.target.config, 1, 64, chunk=4)
    verify = jax.jit(decoding.verify) if is_jitted else decoding.verify
    token, drafts = jnp.zeros(1, jnp.int32), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="5 tokens in one forward, but this cache takes at most 4 at a time"):
        verify(pair.target, cache, token, drafts)


def test_verify_past_the_end_of_the_cache(pair, before, drafts):
    """Outside jit alone, where the length is known."""
    full = gemma4.truncate(before.cache, jnp.array([9, 28], jnp.int32))
    with pytest.raises(ValueError, match="the cache holds 32 tokens, but 28 are in it and 5 more were given"):
        decoding.verify(pair.target, full, before.token, drafts)
