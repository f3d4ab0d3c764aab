"""The twin of a target against the reference, on the five tiny layouts, for every backend.

float32 within 2e-5 of the largest magnitude: the same sums in another order.
"""

import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma4.fast
from gemma4 import PRESETS, Gemma4, KVCache, LayerKV, init_cache
from gemma4.checkpoints.params import named_params, shape_only
from gemma4.fast.attention import FastAttention
from gemma4.fast.experts import SparseExperts
from gemma4.fast.target import FastGemma4
from gemma4.layers import Attention
from gemma4.model import DecoderLayer
from tests.models import TINY, WINDOW, random_target, random_tokens, small_target
from tests.numpy_reference import assert_close, normal

BACKENDS = ("cpu", "gpu", "tpu")
TIME = 2 * WINDOW + 3
LENGTHS = np.array([3, 12, 7])  # tokens in the cache; the ring of the longest wraps
INDEX = np.array([0, TIME - 1, WINDOW])  # the tokens whose hidden states `hidden_at` returns
TOLERANCE = 2e-5

layouts = pytest.mark.parametrize("layout", TINY)
backends = pytest.mark.parametrize("backend", BACKENDS)


class Outputs(NamedTuple):
    hidden: jax.Array
    logits: jax.Array
    cache: KVCache
    hidden_at: jax.Array
    logits_of_one: jax.Array  # of a single hidden state, which a head may read otherwise
    cache_of_hidden_at: KVCache


@jax.jit
def outputs(target: Gemma4, tokens: jax.Array, cache: KVCache, index: jax.Array) -> Outputs:
    hidden, after = target(tokens, cache)
    selected, after_selected = target.hidden_at(tokens, cache, index)
    return Outputs(hidden, target.logits(hidden), after, selected, target.logits(selected[0]), after_selected)


def inputs(layout: str) -> tuple[np.ndarray, KVCache, np.ndarray]:
    """Tokens, and a cache of random K/V with another length for each row."""
    cache = init_cache(TINY[layout], len(LENGTHS), 2 * TIME, chunk=TIME)
    layers = [kv and LayerKV(*(jnp.asarray(normal(*x.shape, seed=i)) for x in kv)) for i, kv in enumerate(cache.layers)]
    return random_tokens(len(LENGTHS), TIME), KVCache(tuple(layers), jnp.asarray(LENGTHS, jnp.int32)), INDEX


@functools.cache
def expected(layout: str) -> Outputs:
    return jax.tree.map(np.asarray, outputs(random_target(TINY[layout]), *inputs(layout)))


@layouts
@backends
def test_the_twin_computes_the_same(layout, backend):
    """Hidden states, logits, and the cache after a forward and after `hidden_at`, at a first, an inner and a last token."""
    twin = gemma4.fast.for_backend(random_target(TINY[layout]), backend)
    ours, reference = outputs(twin, *inputs(layout)), expected(layout)
    for name, values in ours._asdict().items():
        jax.tree.map(functools.partial(assert_close, tolerance=TOLERANCE, what=name), values, getattr(reference, name))
    np.testing.assert_array_equal(ours.cache_of_hidden_at.length, LENGTHS + TIME)


@layouts
def test_hidden_at_of_the_reference(layout):
    """What the twins above are compared with: each row's own token out of all hidden states."""
    reference = expected(layout)
    rows = np.stack([reference.hidden[row, index] for row, index in enumerate(INDEX)])
    assert_close(reference.hidden_at, rows, TOLERANCE)
    jax.tree.map(functools.partial(assert_close, tolerance=TOLERANCE), reference.cache_of_hidden_at, reference.cache)


@layouts
def test_the_upper_layers_run_for_one_token_alone(layout):
    """The last owner of K/V writes them for all tokens, and asks for one; layers above it get that one only."""
    config = TINY[layout]
    twin, times, call = gemma4.fast.for_backend(random_target(config), "tpu"), [], DecoderLayer.__call__

    def recording(self, x, *args):
        times.append(x.shape[1])
        return call(self, x, *args)

    with mock.patch.object(DecoderLayer, "__call__", recording):
        jax.eval_shape(twin.hidden_at, *inputs(layout))
    last_owner = config.first_kv_shared_layer - 1
    assert times == [TIME if layer < last_owner else 1 for layer in range(config.num_hidden_layers)]


# -- weights -----------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])
def test_weights_are_shared(layout, backend):
    """The very same arrays, and no others."""
    target = random_target(TINY[layout])
    ours, theirs = named_params(gemma4.fast.for_backend(target, backend)), named_params(target)
    assert ours.keys() == theirs.keys() and all(ours[name] is leaf for name, leaf in theirs.items())


def test_the_reference_stays_as_it_is():
    target = random_target(TINY["26B-A4B"])
    before = jax.tree.structure(target)
    twin = gemma4.fast.for_backend(target, "cpu")
    assert jax.tree.structure(target) == before and type(target.layers[0].self_attn) is Attention
    assert type(twin) is FastGemma4
    assert {type(layer.self_attn) for layer in twin.layers} == {FastAttention}
    assert {type(layer.experts) for layer in twin.layers} == {SparseExperts}


def test_the_backend_is_jaxs_own_unless_given():
    twin = gemma4.fast.for_backend(small_target())
    assert {layer.self_attn.backend for layer in twin.layers} == {jax.default_backend()}


def test_a_twin_may_be_made_for_another_backend():
    twin = gemma4.fast.for_backend(gemma4.fast.for_backend(random_target(TINY["26B-A4B"]), "cpu"), "tpu")
    assert {layer.self_attn.backend for layer in twin.layers} == {"tpu"}
    assert {layer.experts.backend for layer in twin.layers} == {"tpu"}


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize("name", ["E2B", "26B-A4B"])
def test_shapes_alone_have_twins(name, backend):
    """Off the CPU, for which a twin computes nothing: a full-size model without memory, to compile for a machine elsewhere."""
    twin = gemma4.fast.for_backend(shape_only(Gemma4, PRESETS[name], jnp.bfloat16), backend)
    hidden = jax.ShapeDtypeStruct((1, 2, twin.config.hidden_size), jnp.bfloat16)
    logits = jax.eval_shape(lambda twin, hidden: twin.logits(hidden), twin, hidden)
    assert type(twin) is FastGemma4 and logits.shape == (1, 2, twin.config.vocab_size)
