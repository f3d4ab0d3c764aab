"""Calls that do not walk the models' modules: what is donated, and what is compiled again."""

import jax
import jax.numpy as jnp
import numpy as np

import decoding
from decoding import Options, Sampling
from decoding.baseline import autoregressive_round
from decoding.fast.jit import jit_flat
from decoding.state import DecodeState
from tests.models import small_target

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]
OPTIONS = Options(0)


def prefilled(options: Options = OPTIONS) -> DecodeState:
    return decoding.prefill(small_target(), PROMPTS, options, max_new_tokens=3)


def test_the_cache_is_donated():
    """Otherwise there would be two of them."""
    state = prefilled()
    jit_flat(autoregressive_round, OPTIONS, small_target())(state)
    assert all(buffer.is_deleted() for buffer in jax.tree.leaves(state.cache.layers))


def test_a_function_is_traced_once_for_each_structure_and_kind_of_options():
    """Other weights, other numbers in the options, and another call of `jit_flat` trace nothing."""
    traced = []

    def greedy_token(target, state, options):
        traced.append(jax.tree.structure(options))
        return state._replace(token=target.logits(state.hidden).argmax(axis=-1).astype(jnp.int32))

    target, other = small_target(), small_target(seed=3)
    models = (target, other, target)
    tokens = [jit_flat(greedy_token, OPTIONS, model)(prefilled()).token.tolist() for model in models]
    assert len(traced) == 1 and tokens[0] == tokens[2] != tokens[1]
    jit_flat(greedy_token, Options(0, eos_ids=(5, 6)), target)(prefilled())
    assert len(traced) == 1, "an id that ends a text is an argument"
    for sampling in (Sampling(0.7), Sampling(1.3), Sampling(0.7, top_k=3), Sampling(1.3, top_k=5)):
        jit_flat(greedy_token, Options(0, sampling), target)(prefilled())
    assert len(set(traced)) == len(traced) == 3, "greedy, sampled, sampled with top-k"
    jit_flat(greedy_token, OPTIONS, decoding.fast.for_backend(target))(prefilled())
    assert len(traced) == 4, "a twin has another structure"


def test_changed_weights_are_read_by_the_next_jit_flat():
    def normed(target, state, options):
        return state._replace(hidden=target.norm(state.hidden))

    target = small_target(seed=29)  # no other test's, because its weights change here
    old = jit_flat(normed, OPTIONS, target)
    before = old(prefilled()).hidden
    target.norm.weight[...] = 2 * target.norm.weight[...]
    np.testing.assert_array_equal(old(prefilled()).hidden, before)
    np.testing.assert_array_equal(jit_flat(normed, OPTIONS, target)(prefilled()).hidden, 2 * before)
