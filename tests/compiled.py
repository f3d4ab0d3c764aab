"""Programs of full-size models, compiled for a device that need not be there: `tests/gpu` and `tests/tpu`.

Models are shapes alone, so that nothing but the compiler takes memory or time.  What comes out is the program that the device
would run; its text and its memory are read here.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from decoding import fast
from decoding.baseline import autoregressive_round
from decoding.options import Options
from decoding.round import speculative_round
from decoding.stages.prefill import MAX_CHUNK, _read_chunk, ring_chunk
from decoding.state import DecodeState, Round
from drafter import Drafter
from drafter.config import PRESETS as DRAFTERS
from gemma4 import PRESETS, Gemma4, KVCache, init_cache
from gemma4.checkpoints.params import named_params, shape_only, with_params
from gemma4.config import five_to_one
from gemma4.sharding import AXIS, kv_sharding, shardings

LARGE = 2**24  # bytes: a weight of 12B or 31B, or the keys of a full layer at a long context
SHAPE = r"(?:bf16|f16|f32|s32|u32)\[[\d,]*\]"
ROUND, STEP, PREFILL = "round", "step", "prefill"
# What XLA calls an operation that sends data between devices; `-done` parts are counted with their `-start`.
COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
# Operations of a scheduled program that start no kernel.
NO_KERNEL = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"),
    *("copy-done", "all-reduce-done", "all-gather-done", "partition-id", "replica-id", "async-start", "async-done"),
}


class Setting(NamedTuple):
    """What is compiled: one program of a released size."""

    name: str
    program: str = ROUND
    context: int = 8192
    batch: int = 1
    layers: int | None = None  # fewer of them, which compile sooner
    options: Options = Options(4)

    def __str__(self) -> str:
        layers = "" if self.layers is None else f", {self.layers} layers"
        return f"{self.name} {self.program}, gamma {self.options.draft_length}, context {self.context}{layers}"


class Program(NamedTuple):
    text: str
    memory: Any  # jax's CompiledMemoryStats, for one device
    target: Gemma4
    cache: KVCache  # of all devices together
    kernels: Counter  # by opcode, for one run of the program; a loop's body counts once for each of its iterations
    collectives: Counter

    @property
    def exchanged(self) -> list[int]:
        """Bytes of each array that devices add up, gather or send each other; what a device holds of it afterwards."""
        found = re.findall(
            r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", self.text
        )
        return [bytes_of(shape) for shapes in found for shape in re.findall(SHAPE, shapes)]

    def copied(self, least: float = LARGE) -> list[str]:
        """Arrays of at least so many bytes that are copied to another layout.  (A copy-start only fetches into the core's own
        memory.)
        """
        found = re.findall(rf"= ({SHAPE})\S* (?:copy|transpose)\(", self.text)
        return [shape for shape in found if bytes_of(shape) >= least]

    def summary(self) -> str:
        memory = self.memory
        return (
            f"arguments {memory.argument_size_in_bytes / 1e9:.2f} GB, temporaries {memory.temp_size_in_bytes / 1e6:.1f} MB, "
            f"{sum(self.kernels.values())} kernels {dict(self.kernels.most_common(4))}, collectives {dict(self.collectives)}"
        )


def models(name: str, layers: int | None, backend: str) -> tuple[Gemma4, Drafter]:
    """In bfloat16, by shapes alone, with the twins for `backend`."""
    config = PRESETS[name] if layers is None else dataclasses.replace(PRESETS[name], layer_types=five_to_one(layers))
    pair = shape_only(Gemma4, config, jnp.bfloat16), shape_only(Drafter, DRAFTERS[name], jnp.bfloat16)
    target, draft_model = (fast.for_backend(model, backend) for model in pair)
    return target, draft_model


def state_of(target: Gemma4, setting: Setting) -> DecodeState:
    """As a prefill in long chunks leaves it before the first round, in shapes."""
    batch, gamma = setting.batch, 0 if setting.program == STEP else setting.options.draft_length

    def state() -> DecodeState:
        config, ids = target.config, jnp.zeros(batch, jnp.int32)
        cache = init_cache(config, batch, setting.context, chunk=ring_chunk(MAX_CHUNK), dtype=jnp.bfloat16)
        hidden = jnp.zeros((batch, config.hidden_size), jnp.bfloat16)
        last = Round(*(jnp.zeros((batch, *more), jnp.int32) for more in ((gamma,), (), (gamma + 1,), ())))
        return DecodeState(cache, ids, hidden, jax.random.key(0), ids, ids, ids.astype(bool), last, ids == 0)

    return jax.eval_shape(state)


def compile_for(devices: Sequence[Any], platform: str, setting: Setting) -> Program:
    """The program as `generate` runs it there.  platform: as JAX lowers for it, "cuda" or "tpu" (or "cpu")."""
    backend = "gpu" if platform == "cuda" else platform
    target, draft_model = models(setting.name, setting.layers, backend)
    options = fast.with_kernels(setting.options)
    state = state_of(target, setting)
    place = functools.partial(_placed, devices=devices)
    target, draft_model = place(target), place(draft_model)
    state = state._replace(cache=_placed_cache(state.cache, target, devices))
    state = jax.tree.map(lambda leaf: leaf if leaf.sharding else _whole(leaf, devices), state)
    if setting.program == ROUND:
        step = jax.jit(functools.partial(speculative_round, options=options), donate_argnums=2)
        traced = step.trace(target, draft_model, state)
    elif setting.program == STEP:
        options = dataclasses.replace(options, draft_length=0)
        step = jax.jit(functools.partial(autoregressive_round, options=options), donate_argnums=1)
        traced = step.trace(target, state)
    else:
        tokens = _whole(jax.ShapeDtypeStruct((setting.batch, MAX_CHUNK), jnp.int32), devices)
        traced = _read_chunk.trace(target, state.cache, tokens, state.token, state.hidden)
    compiled = traced.lower(lowering_platforms=(platform,)).compile()
    text = compiled.as_text()
    return Program(
        text,
        compiled.memory_analysis(),
        target,
        state.cache,
        kernels(text),
        Counter(match[1] for match in COLLECTIVE.finditer(text)),
    )


def _whole(leaf: Any, devices: Sequence[Any]) -> jax.ShapeDtypeStruct:
    sharding = SingleDeviceSharding(devices[0]) if len(devices) == 1 else NamedSharding(_mesh(devices), P())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _placed(model: Any, devices: Sequence[Any]) -> Any:
    """The parameters of a model as `load(..., mesh=)` places them."""
    params = named_params(model)
    if len(devices) == 1:
        return with_params(model, {name: _whole(leaf, devices) for name, leaf in params.items()})
    table = shardings(params, _mesh(devices))
    return with_params(
        model,
        {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=table[name]) for name, leaf in params.items()},
    )


def _placed_cache(cache: KVCache, target: Gemma4, devices: Sequence[Any]) -> KVCache:
    if len(devices) == 1:
        return jax.tree.map(lambda leaf: _whole(leaf, devices), cache)

    def placed(layer: int, kv: Any) -> Any:
        sharding = kv_sharding(target.config.kv_heads(layer), _mesh(devices))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), kv)

    return KVCache(tuple(placed(i, kv) for i, kv in enumerate(cache.layers)), _whole(cache.length, devices))


def size_of(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_of(shape: str) -> int:
    """Of an array as a program writes it, such as bf16[4,512]."""
    kind, _, sizes = shape.rstrip("]").partition("[")
    return int(re.findall(r"\d+", kind)[0]) // 8 * math.prod(map(int, filter(None, sizes.split(","))))


def kernels(program: str) -> Counter:
    """How often each opcode starts a kernel, in one run of a scheduled program."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", program, re.M | re.S))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", program, re.M)
    assert entry, "a compiled program has an entry computation"

    def count(name: str) -> Counter:
        total: Counter = Counter()
        for line in computations[name].splitlines():
            operation = re.match(r"\s*(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(", line)
            if not operation:
                continue
            opcode = operation[1]
            if opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
                body = re.search(r"body=%?([\w.\-]+)", line)
                assert body
                for inner, times in count(body[1]).items():
                    total[inner] += times * (int(trips[1]) if trips else 1)
            elif opcode in ("call", "async-start") and (inner := re.search(r"(?:to_apply|calls)=%?([\w.\-]+)", line)):
                total += count(inner[1])
            elif opcode not in NO_KERNEL:
                total[opcode] += 1
        return total

    return count(entry[1])
