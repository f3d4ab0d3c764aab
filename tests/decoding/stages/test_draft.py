"""Stage 1: the drafts of a round are a chain of draft steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import decoding.stages.draft
import drafter
from decoding.sampling import Sampling, sample_from, token_probs
from tests.decoding.stages.conftest import GAMMA

KEY = jax.random.key(3)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.7, top_k=9)], ids=str)
def test_draft_is_a_chain_of_draft_steps(pair, before, sampling):
    """A step reads the scaled embedding of the token before it, the hidden state of the step before it, and the same K/V."""
    cache, token, hidden = before
    shared = drafter.share_cache(cache, pair.target.config)
    uniforms = jax.random.uniform(KEY, (GAMMA, 2))
    drafted = decoding.draft(*pair, token, hidden, shared, KEY, draft_length=GAMMA, sampling=sampling)
    for step in range(GAMMA):
        logits, hidden = drafter.forward(pair.draft_model, pair.target.embed_tokens(token), hidden, shared)
        probs = token_probs(logits, sampling)
        np.testing.assert_allclose(drafted.probs[:, step], probs, rtol=0, atol=1e-5, err_msg=f"draft {step}")
        token = sample_from(probs, uniforms[step])
        assert drafted.tokens[:, step].tolist() == token.tolist(), f"draft {step}"


@pytest.mark.parametrize(
    "dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")], ids=str
)
def test_draft_of_models_in_any_dtypes(pair, before, dtypes):
    """Target and drafter may differ: from step to step, the hidden state has the dtype that the drafter returns."""

    def cast(model, dtype: str):
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, model)

    target, draft_model = map(cast, pair, dtypes)
    cache, token, hidden = before
    shared, hidden = drafter.share_cache(cache, target.config), hidden.astype(dtypes[0])
    drafted = decoding.draft(target, draft_model, token, hidden, shared, KEY, draft_length=GAMMA)
    for step in range(GAMMA):  # reads the drafts themselves, because in bfloat16 nearly equal logits change places
        logits, hidden = drafter.forward(draft_model, target.embed_tokens(token), hidden, shared)
        token = drafted.tokens[:, step]
        gap = logits.max(axis=-1) - jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        assert gap.max() < 0.05 * jnp.abs(logits[jnp.isfinite(logits)]).max(), f"draft {step}"


def test_draft_outside_jit_is_compiled_once(pair, before, monkeypatch):
    """And not at every call."""
    traced, step = [], decoding.stages.draft.step

    def counted(*args):
        traced.append(1)
        return step(*args)

    monkeypatch.setattr(decoding.stages.draft, "step", counted)
    cache, token, hidden = before
    shared = drafter.share_cache(cache, pair.target.config)
    for seed in range(3):
        key = jax.random.key(seed)
        decoding.draft(
            *pair, token, hidden, shared, key, draft_length=GAMMA + 1
        )  # a length that no other test compiles
    assert len(traced) == 1


def test_draft_of_another_batch_than_the_caches(pair, before):
    """Otherwise the K/V of one row would be broadcast to both."""
    cache, token, hidden = before
    one_row = jax.tree.map(lambda buffer: buffer[:1], drafter.share_cache(cache, pair.target.config))
    with pytest.raises(ValueError, match=r"embedding: expected shape \(1, 24\) .* got \(2, 24\)"):
        decoding.draft(*pair, token, hidden, one_row, KEY, draft_length=GAMMA)
