"""A round of full-size models, compiled for a TPU: it fits, and copies neither the cache nor weights."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from decoding import fast
from decoding.options import Options
from decoding.round import speculative_round
from decoding.sampling import Sampling
from decoding.state import DecodeState, Round
from drafter import Drafter
from drafter.config import PRESETS as DRAFTERS
from gemma4 import PRESETS, Gemma4, init_cache
from gemma4.checkpoints.params import shape_only
from gemma4.config import FULL, five_to_one

GAMMA, CONTEXT = 4, 131_072
SAMPLED = Options(GAMMA, Sampling(1.0, top_k=64, top_p=0.95), Sampling(1.0), acceptance="block")
LARGE = 2**24  # bytes: a weight of 12B or 31B, or the keys of a full layer


def models(name: str, layers: int | None):
    """In bfloat16, by shapes alone, with the twins for a TPU.  layers: fewer of them, which compile sooner."""
    config = PRESETS[name] if layers is None else dataclasses.replace(PRESETS[name], layer_types=five_to_one(layers))
    pair = shape_only(Gemma4, config, jnp.bfloat16), shape_only(Drafter, DRAFTERS[name], jnp.bfloat16)
    return tuple(fast.for_backend(model, "tpu") for model in pair)


def state_of(target: Gemma4) -> DecodeState:
    def state():
        config, ids = target.config, jnp.zeros(1, jnp.int32)
        cache = init_cache(config, 1, CONTEXT, chunk=513, dtype=jnp.bfloat16)
        hidden = jnp.zeros((1, config.hidden_size), jnp.bfloat16)
        last = Round(*(jnp.zeros((1, *more), jnp.int32) for more in ((GAMMA,), (), (GAMMA + 1,), ())))
        return DecodeState(cache, ids, hidden, jax.random.key(0), ids, ids, ids.astype(bool), last, ids == 0)

    return jax.eval_shape(state)


def compiled_round(tpus, name: str, layers: int | None = None, options: Options = Options(GAMMA)):
    """The program as `generate` runs it on a TPU, and the target and the cache that it is for."""
    target, draft_model = models(name, layers)
    on_one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(tpus[0]))
    arguments = jax.tree.map(on_one, (target, draft_model, state_of(target)))
    round_fn = functools.partial(speculative_round, options=fast.with_kernels(options))
    step = jax.jit(round_fn, donate_argnums=2)
    return step.trace(*arguments).lower(lowering_platforms=("tpu",)).compile(), target, arguments[-1].cache


def size_of(layers) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(layers))


def large_copies(program: str) -> list[str]:
    """Shapes of large arrays that are copied to another layout.  (A copy-start only fetches into the core's own memory.)"""
    shapes = re.findall(r"= bf16\[([\d,]+)\]\S* copy\(", program)
    return [shape for shape in shapes if 2 * math.prod(map(int, shape.split(","))) >= LARGE]


@pytest.mark.parametrize(
    "name, layers, options", [("E2B", None, Options(GAMMA)), ("31B", 6, Options(GAMMA)), ("12B", 6, SAMPLED)], ids=str
)
def test_a_round_copies_neither_the_cache_nor_weights(tpus, name, layers, options):
    program, target, cache = compiled_round(tpus, name, layers, options)
    memory, size = program.memory_analysis(), size_of(cache.layers)
    print(f"{name}: cache {size / 1e6:.0f} MB, temporaries {memory.temp_size_in_bytes / 1e6:.0f} MB")
    assert memory.alias_size_in_bytes >= size, "the cache is donated, and updated in place"
    assert memory.temp_size_in_bytes < size_of(cache.layers[target.config.donors[FULL]].key), "one layer's keys"
    assert large_copies(program.as_text()) == []
