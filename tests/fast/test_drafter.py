"""The twin of a drafter against the reference: one draft step on the five tiny layouts, and the vocabulary head.

float32 within 2e-5 of the largest magnitude, or as a test states.
"""

import functools
import gc
import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import drafter.fast
from drafter import Drafter, SharedCache, clustered_argmax, clustered_logits, share_cache
from drafter.clustering import best_candidate, scatter_logits
from drafter.config import PRESETS
from drafter.fast import FastDrafter, candidates_in_blocks, in_blocks
from drafter.model import step
from gemma4 import KVCache, LayerKV, init_cache
from gemma4.checkpoints.params import named_params, shape_only
from tests.models import (
    CLUSTERED,
    TINY,
    TINY_DRAFTERS,
    WINDOW,
    drafter_config,
    random_drafter,
    small_drafter,
)
from tests.numpy_reference import assert_close, normal

BACKENDS = ("cpu", "gpu", "tpu")
LENGTHS = np.array([WINDOW - 1, WINDOW + 1, 2 * WINDOW + 3])
TOLERANCE = 2e-5

backends = pytest.mark.parametrize("backend", BACKENDS)

# -- a step ------------------------------------------------------------------------------------------------------------


class Outputs(NamedTuple):
    logits: jax.Array
    argmax: jax.Array
    chained: jax.Array


@jax.jit
def outputs(draft_model: Drafter, embedding: jax.Array, hidden: jax.Array, shared: SharedCache) -> Outputs:
    normed, chained = step(draft_model, embedding, hidden, shared)
    return Outputs(draft_model.logits(normed), draft_model.argmax(normed), chained)


def inputs(layout: str) -> tuple[np.ndarray, np.ndarray, SharedCache]:
    """Embedding, hidden state, and random K/V of the target with another length for each row; the longest ring wraps."""
    config = TINY[layout]
    cache = init_cache(config, len(LENGTHS), 32, chunk=5)
    layers = [kv and LayerKV(*(jnp.asarray(normal(*x.shape, seed=i)) for x in kv)) for i, kv in enumerate(cache.layers)]
    cache = KVCache(tuple(layers), jnp.asarray(LENGTHS, jnp.int32))
    embedding, hidden = (normal(len(LENGTHS), config.hidden_size, seed=seed) for seed in (1, 2))
    return embedding, hidden, share_cache(cache, config)


@functools.cache
def expected(layout: str) -> Outputs:
    return jax.tree.map(np.asarray, outputs(random_drafter(TINY_DRAFTERS[layout]), *inputs(layout)))


@pytest.mark.parametrize("layout", TINY)
@backends
def test_the_twin_computes_the_same(layout, backend):
    """Logits (of the same tokens, where a head is clustered), their argmax, and the hidden state of the next step."""
    twin = drafter.fast.for_backend(random_drafter(TINY_DRAFTERS[layout]), backend)
    ours, reference = outputs(twin, *inputs(layout)), expected(layout)
    scored = np.isfinite(reference.logits)
    assert scored.all() == (layout not in CLUSTERED)
    np.testing.assert_array_equal(np.isfinite(ours.logits), scored)
    assert_close(np.asarray(ours.logits)[scored], reference.logits[scored], TOLERANCE, "logits")
    np.testing.assert_array_equal(ours.argmax, reference.argmax)
    assert_close(ours.chained, reference.chained, TOLERANCE, "chained hidden state")


@backends
@pytest.mark.parametrize("layout", ["E2B", "12B"])
def test_weights_are_shared(layout, backend):
    """The very same arrays; on a CPU one more, the blocks of a clustered head."""
    draft_model = random_drafter(TINY_DRAFTERS[layout])
    twin = drafter.fast.for_backend(draft_model, backend)
    ours, theirs = named_params(twin), named_params(draft_model)
    assert type(twin) is FastDrafter and type(draft_model) is Drafter
    assert all(ours[name] is leaf for name, leaf in theirs.items())
    assert ours.keys() - theirs.keys() == ({"blocks"} if backend == "cpu" and layout in CLUSTERED else set())


def test_the_backend_is_jaxs_own_unless_given():
    twin = drafter.fast.for_backend(small_drafter())
    assert {layer.self_attn.backend for layer in twin.layers} == {jax.default_backend()}


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize("name", ["E2B", "31B"])
def test_shapes_alone_have_twins(name, backend):
    """Off the CPU: a full-size drafter without memory, to compile for a machine elsewhere."""
    twin = drafter.fast.for_backend(shape_only(Drafter, PRESETS[name], jnp.bfloat16), backend)
    normed = jax.ShapeDtypeStruct((2, twin.config.text.hidden_size), jnp.bfloat16)
    assert jax.eval_shape(lambda twin, normed: twin.argmax(normed), twin, normed).shape == (2,)


# -- the head on a CPU -------------------------------------------------------------------------------------------------

heads = jax.jit(lambda model, normed: (model.logits(normed), model.argmax(normed), model.dense_logits(normed)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("clustered", [True, False])
def test_heads(clustered, dtype):
    """The same logits (largest: about 3) and argmax; a clustered head's from its copy, and the drafter itself has none."""
    draft_model = random_drafter(drafter_config(TINY["E2B"], clustered=clustered), dtype=jnp.dtype(dtype))
    twin = drafter.fast.for_backend(draft_model, "cpu")
    normed = jax.random.normal(jax.random.key(1), (3, draft_model.config.text.hidden_size), dtype)
    (logits, best, dense), expected = heads(twin, normed), heads(draft_model, normed)
    np.testing.assert_allclose(logits, expected[0], rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-6)
    np.testing.assert_array_equal(best, expected[1])
    np.testing.assert_allclose(dense, expected[2], rtol=1e-5, atol=1e-6)

    if not clustered:
        assert twin.blocks is None
        return
    twin.blocks[...] *= 2
    np.testing.assert_allclose(heads(twin, normed)[0], 2 * expected[0], rtol=1e-2)
    np.testing.assert_array_equal(heads(draft_model, normed)[0], expected[0])


# -- clusters in blocks ------------------------------------------------------------------------------------------------


def random_head(vocabulary: int, width: int, centroids: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Table rows of small integers, whose products are exact in any order; three copies of each, anywhere in the ordering."""
    rng = np.random.default_rng(5)
    rows = np.tile(rng.integers(-3, 4, (vocabulary // 4, width)), (4, 1)).astype(np.float32)
    ordering = rng.permutation(vocabulary).astype(np.int32)
    assert (ordering[ordering] != np.arange(vocabulary)).any()  # not its own inverse
    return jnp.asarray(rows), jnp.asarray(rng.normal(size=(centroids, width)), jnp.float32), jnp.asarray(ordering)


@functools.partial(jax.jit, static_argnums=2)
def gathered_and_in_blocks(hidden, head, top_k):
    table, centroids, ordering = head
    blocks = in_blocks(table, ordering, len(centroids))
    candidates = candidates_in_blocks(hidden, blocks, centroids, ordering, top_k)
    return (
        (clustered_logits(hidden, *head, top_k), clustered_argmax(hidden, *head, top_k)),
        (scatter_logits(*candidates, len(table)), best_candidate(*candidates, len(table))),
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "vocabulary, width, centroids, top_k", [(512, 12, 32, 5), (512, 12, 32, 32), (96, 7, 8, 1), (40, 3, 40, 9)]
)
def test_blocks_hold_the_same_tokens(vocabulary, width, centroids, top_k, batch):
    """Blocks and gathered rows: the same logits, bit for bit where products are exact, and of tied tokens the lowest id."""
    head, rng = random_head(vocabulary, width, centroids), np.random.default_rng(6)
    is_tied = []
    for _ in range(8):
        hidden = jnp.asarray(rng.integers(-3, 4, (batch, width)), jnp.float32)
        (gathered, best), (from_blocks, best_of_blocks) = gathered_and_in_blocks(hidden, head, top_k)
        np.testing.assert_array_equal(from_blocks, gathered)
        np.testing.assert_array_equal(best_of_blocks, best)
        np.testing.assert_array_equal(best_of_blocks, np.argmax(from_blocks, axis=1))
        is_tied += [(row == row.max()).sum() > 1 for row in np.asarray(from_blocks)]
        if top_k == centroids:
            np.testing.assert_array_equal(from_blocks, hidden @ head[0].T)
    assert top_k < centroids or all(is_tied)


def test_blocks_round_as_gathered_rows_do():
    """Table rows that are not integers: float32 logits within 1e-6 of the largest, and the same argmax."""
    table, centroids, ordering = random_head(512, 12, 32)
    head = table + jnp.asarray(normal(512, 12, scale=0.3)), centroids, ordering
    (gathered, best), (from_blocks, best_of_blocks) = gathered_and_in_blocks(jnp.asarray(normal(64, 12)), head, 5)
    scored = np.isfinite(gathered)
    np.testing.assert_array_equal(np.isfinite(from_blocks), scored)
    assert_close(np.asarray(from_blocks)[scored], np.asarray(gathered)[scored], 1e-6)
    np.testing.assert_array_equal(best_of_blocks, best)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_are_not_copied(dtype):
    """Scoring takes no room for another copy of the table: XLA on CPU likes to make one in float32."""
    shapes = {"hidden": (1, 64), "blocks": (256, 32, 64), "centroids": (256, 64)}
    args = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    args["token_ordering"] = jax.ShapeDtypeStruct((8192,), jnp.int32)

    def best(**args):
        return best_candidate(*candidates_in_blocks(**args, top_k=4), 8192)

    compiled = jax.jit(best).lower(**args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8192 * 64 / 4


def test_blocks_follow_the_weights():
    """Twins share one copy.  A new table gives new logits, and the old copy is freed with the old table."""
    draft_model = random_drafter(TINY_DRAFTERS["E2B"])
    table = draft_model.embed_tokens.weight
    table[...] = table[...] * 1  # `random_drafter` keeps the first table
    normed = jax.random.normal(jax.random.key(0), (3, draft_model.config.text.hidden_size))
    before = drafter.fast.for_backend(draft_model, "cpu")
    assert drafter.fast.for_backend(draft_model, "cpu").blocks[...] is before.blocks[...]
    old_blocks = weakref.ref(before.blocks[...])
    table[...] = 3 * table[...]
    np.testing.assert_allclose(
        drafter.fast.for_backend(draft_model, "cpu").logits(normed), draft_model.logits(normed), rtol=1e-4, atol=1e-5
    )
    del before
    gc.collect()
    assert old_blocks() is None
