"""Reading a long prompt: as `generate` does, and with every layer run for every token."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from decoding import fast
from decoding.bench.loops import quartiles
from decoding.bench.machine import Machine
from decoding.bench.subject import Subject, prompts
from decoding.bench.work import against_machine, prefill_work
from decoding.options import Options
from decoding.stages.prefill import MAX_CHUNK, prefill
from gemma4 import Gemma4, KVCache, init_cache


def measure_prefill(subject: Subject, tokens: int, runs: int, machine: Machine) -> dict[str, Any]:
    """A prefill of one random prompt of `tokens` tokens, its first token included.

    `every_layer_seconds`: the same chunks through `target(tokens, cache)`, which leaves out no layer; no token is drawn.
    """
    target, options = subject.for_backend().target, fast.with_kernels(Options(0))
    (prompt,) = prompts(subject._replace(texts=[]), 1, tokens)
    ways: dict[str, Callable[[], Any]] = {
        "seconds": lambda: prefill(target, [prompt], options, max_new_tokens=1),
        "every_layer_seconds": lambda: read_with_every_layer(target, jnp.asarray([prompt])),
    }
    laps: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            seconds = _seconds(way)
            if run:  # the first one compiles
                laps[name].append(seconds)
    every_layer = statistics.median(laps["every_layer_seconds"])
    entry = against_machine(statistics.median(laps["seconds"]), prefill_work(subject.target, 1, tokens), machine)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / entry["seconds"],
        **entry,
        "seconds_quartiles": quartiles(laps["seconds"]),
        "every_layer_seconds": every_layer,
        "gain": every_layer / entry["seconds"],
    }


def read_with_every_layer(target: Gemma4, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
    """The hidden state of the last token."""
    batch, length = tokens.shape
    chunk, dtype = min(MAX_CHUNK, length), target.embed_tokens.weight.dtype
    cache = init_cache(target.config, batch, length, chunk=chunk + 1, dtype=dtype)
    hidden = jnp.zeros((batch, target.config.hidden_size), dtype)
    for first in range(0, length, chunk):
        hidden, cache = _read(target, tokens[:, first : first + chunk], cache)
    return hidden


@functools.partial(jax.jit, donate_argnames="cache")
def _read(target: Gemma4, tokens: Int[Array, "b t"], cache: KVCache) -> tuple[Float[Array, "b d"], KVCache]:
    hidden, cache = target(tokens, cache)
    return hidden[:, -1], cache


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began
