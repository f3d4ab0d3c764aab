"""What a stage needs at least: its operations as traced, its bytes by hand, and both against the machine."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from decoding import fast
from decoding.bench import machine
from decoding.bench.loops import quartiles
from decoding.bench.work import Work, against_machine, draft_work, forward_work, least_seconds, prefill_work
from drafter import Drafter, SharedCache
from drafter.model import step
from gemma4 import Config, Gemma4, init_cache
from gemma4.checkpoints.params import shape_only
from tests.flops import flops_of
from tests.models import TINY, TINY_DRAFTERS

# -- operations, counted -----------------------------------------------------------------------------------------------


def test_counter():
    a, b = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 7))
    product = 2 * 5 * 2 * 3 * 7
    assert flops_of(jnp.matmul, a, b) == product
    assert flops_of(jax.jit(lambda a, b: a @ b + a @ b), a, b) == 2 * product
    in_scan = lambda a, b: jax.lax.scan(lambda total, _: (total + (a @ b).sum(), None), 0.0, None, length=11)
    assert flops_of(in_scan, a, b) == 11 * product
    assert flops_of(lambda a, b: jax.lax.cond(True, jnp.matmul, lambda a, b: a @ b, a, b), a, b) == product
    own_derivative = jax.custom_jvp(lambda a: a @ b)
    own_derivative.defjvp(lambda primals, tangents: (own_derivative(*primals), tangents[0] @ b))
    assert flops_of(own_derivative, a) == product
    with pytest.raises(ValueError, match="unknown length"):
        flops_of(lambda a, b: jax.lax.fori_loop(0, jnp.int32(a[0, 0, 0]), lambda _, a: a + (a @ b).sum(), a), a, b)


def wide_window(layout: str, **changes) -> Config:
    """`layout` with a window longer than every context here, so that each query sees the whole capacity."""
    return dataclasses.replace(TINY[layout], sliding_window=64, **changes)


def of_forward(config: Config, batch: int, tokens: int, context: int) -> tuple[Work, int]:
    """The formula's work and the jaxpr's operations, for a cache that is full after these tokens."""
    target = shape_only(Gemma4, config, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch, context + tokens))

    def run(target, cache, tokens):
        twin = fast.for_backend(target, "cpu")
        return twin.logits(twin(tokens, cache)[0])

    shape = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    return forward_work(target, batch, tokens, context), flops_of(run, target, cache, shape)


SHAPES = [(1, 1, 20), (2, 3, 9)]  # batch, tokens, context


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [name for name in TINY if not TINY[name].enable_moe_block])
def test_flops_of_a_forward(layout, shape):
    work, counted = of_forward(wide_window(layout), *shape)
    assert work.flops == counted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flops_with_experts(shape):
    """Fewer visits than experts and more: each token computes its own experts, and nothing else."""
    work, counted = of_forward(wide_window("26B-A4B"), *shape)
    assert work.flops == counted


@pytest.mark.parametrize("layout", [name for name in TINY if not TINY[name].enable_moe_block])
def test_flops_of_a_prefill(layout):
    config, batch, tokens = wide_window(layout), 2, 13
    target = shape_only(Gemma4, config, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch, tokens))

    def run(target, cache, tokens, last):
        twin = fast.for_backend(target, "cpu")
        return twin.logits(twin.hidden_at(tokens, cache, last)[0])

    prompt, last = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, tokens), (batch,)))
    assert prefill_work(target, batch, tokens).flops == flops_of(run, target, cache, prompt, last)


@pytest.mark.parametrize("backend", [None, "cpu", "gpu"])
@pytest.mark.parametrize("layout", list(TINY))
def test_flops_of_a_draft_step(layout, backend):
    """Dense heads and clustered ones, of the drafter as loaded and of its twins."""
    config, batch, context = TINY[layout], 2, 9
    drafts = TINY_DRAFTERS[layout]
    text = dataclasses.replace(drafts.text, sliding_window=64)
    draft_model = shape_only(Drafter, dataclasses.replace(drafts, text=text), jnp.float32)
    target = shape_only(Gemma4, config, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch, context))
    shared = SharedCache({kind: cache.layers[layer] for kind, layer in config.donors.items()}, cache.length)

    def run(draft_model, embedding, hidden, shared):
        draft_model = fast.for_backend(draft_model, backend) if backend else draft_model
        return draft_model.argmax(step(draft_model, embedding, hidden, shared)[0])

    hidden = jax.ShapeDtypeStruct((batch, config.hidden_size), jnp.float32)
    work = draft_work(target, draft_model, batch, context)
    assert work.flops == flops_of(run, draft_model, hidden, hidden, shared)


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_bytes_by_hand():
    """E2B's tiny layout, S S F | S F (the last two share K/V), batch 2, 3 tokens after 20, all figures written out."""
    tables = 6 * 24 + 64 * 24 + 6 * 5 * 12  # embeddings of 6 tokens, the head, and their per-layer rows
    per_layer_inputs = 24 * 5 * 12 + 12
    sliding, full = 2 * 24 * 4 * 8 + 8, 2 * 24 * 4 * 16 + 16  # q, o, q_norm
    keys_and_values = 2 * (2 * 24 * 8 + 8) + (2 * 24 * 16 + 16)  # k, v, k_norm: of layers 0, 1, and of layer 2
    mlp = 3 * 3 * 24 * 40 + 2 * 3 * 24 * 80
    every_layer = 5 * (5 * 24 + 2 * 24 * 12 + 1)  # five norms, two per-layer projections, a scalar
    weights = tables + per_layer_inputs + 3 * sliding + 2 * full + keys_and_values + mlp + every_layer + 24
    read = 3 * (8 + 2) * 2 * 8 + 2 * 23 * 2 * 16  # one window for the first of 3 queries, two more positions; all 23
    written = 2 * 3 * 2 * 8 + 1 * 3 * 2 * 16  # by the three owners
    expected = 4 * (weights + 2 * (read + written))
    assert forward_work(shape_only(Gemma4, TINY["E2B"], jnp.float32), 2, 3, 20).bytes == expected
    assert forward_work(shape_only(Gemma4, TINY["E2B"], jnp.bfloat16), 2, 3, 20).bytes == expected / 2


def test_bytes_of_a_draft_step_by_hand():
    """E2B's tiny drafter, S S S F, clustered: 16 centroids, 3 clusters of 4 tokens."""
    config, drafts = TINY["E2B"], TINY_DRAFTERS["E2B"]
    assert (drafts.num_centroids, drafts.centroid_intermediate_top_k, config.vocab_size) == (16, 3, 64)
    projections = 48 * 20 + 20 * 24
    sliding, full = 2 * 20 * 2 * 8 + 8, 2 * 20 * 2 * 16 + 16
    layers = 3 * sliding + full + 4 * (3 * 20 * 28 + 4 * 20 + 1) + 20
    head = 20 * 16 + 12 * 20 + 12  # centroids, rows of the candidates, their ids
    read = 3 * 8 * 2 * 8 + 20 * 2 * 16
    target, draft_model = shape_only(Gemma4, config, jnp.float32), shape_only(Drafter, drafts, jnp.float32)
    assert draft_work(target, draft_model, 1, 20).bytes == 4 * (24 + projections + layers + head + read)


def test_sliding_layers_stop_growing():
    """From context to context only full layers read more."""
    target = shape_only(Gemma4, TINY["E2B"], jnp.float32)
    bytes_at = lambda context: forward_work(target, 1, 1, context).bytes
    assert bytes_at(6) - bytes_at(5) == 4 * (3 * 2 * 8 + 2 * 2 * 16)
    assert bytes_at(60) - bytes_at(50) == 10 * 4 * 2 * 2 * 16


def test_layers_that_share_write_nothing():
    """If the last two layers own K/V, their key and value weights count, and the K/V that they write."""
    config = dataclasses.replace(TINY["E2B"], use_double_wide_mlp=False)
    owners = dataclasses.replace(config, num_kv_shared_layers=0)
    sharing, owning = (forward_work(shape_only(Gemma4, one, jnp.float32), 1, 3, 20).bytes for one in (config, owners))
    weights = (2 * 24 * 8 + 8) + (2 * 24 * 16 + 16)
    assert owning - sharing == 4 * (weights + 3 * 2 * 8 + 3 * 2 * 16)


def test_bytes_of_experts():
    """One token reads the experts that it visits; many never read more than all."""
    config = TINY["26B-A4B"]
    bytes_of = lambda config, tokens: forward_work(shape_only(Gemma4, config, jnp.float32), 1, tokens, 0).bytes
    everything = dataclasses.replace(config, top_k_experts=config.num_experts)
    expert = 4 * config.num_hidden_layers * 3 * config.moe_intermediate_size * config.hidden_size
    left_out = [(bytes_of(everything, tokens) - bytes_of(config, tokens)) / expert for tokens in (1, 2, 5, 50, 10_000)]
    assert left_out[0] == pytest.approx(4) and left_out == sorted(left_out, reverse=True)
    assert all(experts >= 0 for experts in left_out) and left_out[-1] == pytest.approx(0, abs=1e-6)


def test_against_machine():
    given = machine.Machine("a device", bytes_per_second=1000.0, flops_per_second=500.0)
    entry = against_machine(2.0, Work(1000.0, 100.0), given)
    assert (entry["seconds"], entry["share_of_bandwidth"], entry["share_of_flops"]) == (2.0, 0.5, 0.1)
    assert (entry["bytes"], entry["flops"]) == (1000.0, 100.0)


def test_quartiles():
    assert quartiles([4.0, 1.0, 2.0]) == [1.5, 3.0] and quartiles([7.0]) == [7.0, 7.0]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_share_of_the_machine_in_no_time(seconds):
    """A difference of two times may be so on a noisy machine."""
    given = machine.Machine("a device", bytes_per_second=1000.0, flops_per_second=500.0)
    entry = against_machine(seconds, Work(1000.0, 100.0), given)
    assert (entry["seconds"], entry["share_of_bandwidth"], entry["share_of_flops"]) == (seconds, None, None)


def test_the_slower_of_memory_and_arithmetic_decides():
    this = machine.Machine("this", bytes_per_second=10.0, flops_per_second=100.0)
    assert least_seconds(Work(30, 200), this) == 3
    assert least_seconds(Work(10, 500), this) == 5
