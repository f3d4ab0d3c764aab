"""How time and memory grow with the context: a whole step, and the attention of one layer of each type alone."""

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from decoding import fast
from decoding.bench.stages import Stage, StageInputs, Timer, after, autoregressive_stage
from decoding.bench.subject import Subject
from decoding.options import Options
from decoding.state import DecodeState, Round
from drafter import Drafter
from gemma4 import Gemma4, init_cache
from gemma4.config import FULL, SLIDING

CHUNK = 8  # tokens that one forward may write: a ring's slots beyond its window


def measure_contexts(subject: Subject, contexts: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """One entry for each context: seconds of a step and of one layer's attention, and bytes of the cache, by type of layer.

    Laps alternate between all contexts.
    """
    subject, options = subject.for_backend(), fast.with_kernels(Options(1))
    config = subject.target.config
    stages = {"step": autoregressive_stage} | {
        kind: attention_stage(config.donors[kind]) for kind in (SLIDING, FULL) if kind in config.donors
    }
    timers = {
        (context, name): Timer(stage, subject.target, subject.draft_model, full_state(subject, context), options)
        for context in contexts
        for name, stage in stages.items()
    }
    laps: dict[tuple[int, str], list[float]] = {key: [] for key in timers}
    for _ in range(runs):
        for key, timer in timers.items():
            laps[key].append(timer.lap())
    return [
        {
            "context": context,
            "seconds": {name: statistics.median(laps[context, name]) for name in stages},
            "cache_bytes": cache_bytes(subject, context),
        }
        for context in contexts
    ]


def full_state(subject: Subject, context: int) -> DecodeState:
    """One row whose cache holds all tokens of `context` but the last."""
    config, table = subject.target.config, subject.target.embed_tokens.weight
    cache = init_cache(config, 1, context, chunk=CHUNK, dtype=table.dtype)
    one = jnp.ones(1, jnp.int32)
    tokens = jnp.zeros((1, 2), jnp.int32)
    return DecodeState(
        cache=cache._replace(length=one * (context - 1)),
        token=one,
        hidden=jnp.ones((1, config.hidden_size), table.dtype),
        key=jax.random.key(0),
        emitted=one,
        budget=one,
        done=one > 0,  # so every repetition is at the same position
        last=Round(tokens[:, 1:], one, tokens, one),
        is_finite=one > 0,
    )


def cache_bytes(subject: Subject, context: int) -> dict[str, int]:
    """Bytes by type of layer, for one row of `context` tokens."""
    config = subject.target.config
    cache = jax.eval_shape(
        lambda: init_cache(config, 1, context, chunk=CHUNK, dtype=subject.target.embed_tokens.weight.dtype)
    )

    def of_type(kind: str) -> int:
        kvs = [kv for layer, kv in enumerate(cache.layers) if kv and config.layer_types[layer] == kind]
        return sum(array.size * array.dtype.itemsize for kv in kvs for array in kv)

    return {kind: of_type(kind) for kind in (SLIDING, FULL)}


@functools.lru_cache
def attention_stage(layer: int) -> Stage:
    """The attention of one layer that owns K/V, for one token a row."""

    def run(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
        state = inputs.state
        of_kind = target.attention_inputs(target.config.layer_types[layer], state.token[:, None], state.cache)
        out, kv = target.layers[layer].self_attn(state.hidden[:, None], state.cache.layers[layer], of_kind)
        layers = tuple(kv if i == layer else old for i, old in enumerate(state.cache.layers))
        cache = state.cache._replace(layers=layers)
        return inputs._replace(state=state._replace(cache=cache, hidden=after(out, state.hidden)))

    return run
