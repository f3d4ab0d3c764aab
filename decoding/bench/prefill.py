"""Reading a long prompt: as `decoding.stages.prefill` does it, and with every layer run for every token."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from decoding.bench.machine import Machine
from decoding.bench.spread import quartiles
from decoding.bench.subject import Subject, prompts
from decoding.bench.work import against_machine, prefill_work
from decoding.options import Options
from decoding.stages.prefill import MAX_CHUNK, prefill
from gemma4 import Gemma4, KVCache, init_cache


def measure_prefill(subject: Subject, tokens: int, runs: int, machine: Machine) -> dict[str, Any]:
    """One random prompt of `tokens` tokens, read in chunks; the choice of a first token is part of it.

    `every_layer_seconds`: the same chunks without leaving any layer out, nothing chosen.
    """
    target = subject.target
    (prompt,) = prompts(subject._replace(texts=[]), 1, tokens)
    ways = {
        "seconds": lambda: prefill(target, [prompt], 1, Options(0), None),
        "every_layer_seconds": lambda: read_with_every_layer(target, jnp.asarray([prompt])),
    }
    laps: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            seconds = _seconds(way)
            if run:  # the first one compiles
                laps[name].append(seconds)
    every_layer = statistics.median(laps["every_layer_seconds"])
    entry = against_machine(statistics.median(laps["seconds"]), prefill_work(target, 1, tokens), machine)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / entry["seconds"],
        **entry,
        "seconds_quartiles": quartiles(laps["seconds"]),
        "every_layer_seconds": every_layer,
        "gain": every_layer / entry["seconds"],
    }


def read_with_every_layer(target: Gemma4, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
    """The last token's hidden row."""
    batch, length = tokens.shape
    chunk = min(MAX_CHUNK, length)
    cache = init_cache(target.config, batch, length, chunk=chunk + 1, dtype=target.embed_tokens.weight.dtype)
    for first in range(0, length, chunk):
        hidden, cache = _read(target, tokens[:, first : first + chunk], cache)
    return hidden


@functools.partial(jax.jit, donate_argnames="cache")
def _read(target: Gemma4, tokens: Int[Array, "b t"], cache: KVCache) -> tuple[Float[Array, "b d"], KVCache]:
    hidden, cache = target(tokens, cache)
    return hidden[:, -1], cache


def _seconds(run: Callable) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began
