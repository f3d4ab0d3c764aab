"""Autoregressive decoding: the text is the target's, token by token."""

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import gemma4
from decoding import Options, Sampling
from decoding.baseline import autoregressive_step
from decoding.sampling import sample
from tests.models import SMALL_CONTEXT, small_target

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]  # the second is longer than the window
NEW_TOKENS = 15


def logits_after(tokens: list[int]) -> np.ndarray:
    """One forward over the whole text, without a cache; padded on the right, so that all lengths are one program."""
    padded = tokens + [0] * (SMALL_CONTEXT - len(tokens))
    return np.asarray(gemma4.forward(small_target(), [padded]).logits[0, len(tokens) - 1])


def test_greedy_text_is_the_argmax_after_every_token():
    out = decoding.generate_autoregressive(small_target(), PROMPTS, max_new_tokens=NEW_TOKENS, loop="plain")
    for prompt, text in zip(PROMPTS, out.tokens, strict=True):
        for length, token in enumerate(text.tolist()):
            assert token == logits_after([*prompt, *text[:length].tolist()]).argmax(), length
    assert out.stats.rounds == 2 * (NEW_TOKENS - 1) and out.stats.tokens_per_round == 1


def test_a_round_by_its_parts():
    """It writes the newest token, draws the next one from the target's distribution, and leaves done rows as they are."""
    target, options, prompts = small_target(), Options(0, Sampling(2.0)), PROMPTS * 8
    state = decoding.prefill(target, prompts, options, max_new_tokens=NEW_TOKENS, key=jax.random.key(3))
    done = np.arange(len(prompts)) < 3
    state = state._replace(done=jnp.asarray(done))
    token, hidden, length = (np.array(x) for x in (state.token, state.hidden, state.cache.length))
    _, sample_key = jax.random.split(state.key)
    logits = np.stack([logits_after([*prompt, newest]) for prompt, newest in zip(prompts, token.tolist(), strict=True)])
    drawn = sample(jnp.asarray(logits), options.sampling, jax.random.uniform(sample_key, (len(prompts),)))

    after = autoregressive_step(target, state, options)
    assert after.token.tolist() == np.where(done, token, drawn).tolist()
    assert after.last.num_emitted.tolist() == (~done).tolist() and after.last.draft_tokens.shape == (len(prompts), 0)
    assert after.cache.length.tolist() == (length + ~done).tolist()
    assert after.emitted.tolist() == (1 + ~done).tolist() and after.done.tolist() == done.tolist()
    np.testing.assert_array_equal(after.hidden[:3], hidden[:3])
    assert (np.asarray(after.hidden[3:]) != hidden[3:]).any(axis=1).all()


def test_a_step_reuses_the_cache_that_it_is_given():
    """Otherwise there would be two of them."""
    target, options = small_target(), Options(0)
    state = decoding.prefill(target, PROMPTS, options, max_new_tokens=3)
    autoregressive_step(target, state, options)
    assert all(buffer.is_deleted() for buffer in jax.tree.leaves(state.cache.layers))
