"""How long the drafter's head takes: dense, clustered with rows gathered, clustered with rows in blocks."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from drafter.clustering import clustered_argmax, in_blocks
from gemma4.functional import argmax
from gemma4.layers import matmul


def time_heads(
    vocabulary: int = 262_144,
    width: int = 256,
    centroids: int = 2048,
    top_k: int = 32,
    *,
    batch: int = 1,
    repeats: int = 50,
) -> dict[str, float]:
    """Median seconds of the greedy choice by each head, float32, compiled, and how many times the dense one takes.

    The dense head is given the faster of two layouts of its table: as it is, and transposed.  All take turns, on new hidden
    rows each time, so that none finds its rows in the processor's cache and a slow moment strikes all alike.
    Errors: RuntimeError if the two clustered heads ever differ, or differ from the dense one where its choice is among the
    tokens that they score; or if there was no such row.
    """
    rng = np.random.default_rng(0)
    ordering = rng.permutation(vocabulary).astype(np.int32)
    centres = 2 * rng.standard_normal((centroids, width), np.float32)
    cluster_of = np.empty(vocabulary, np.int32)
    cluster_of[ordering] = np.arange(vocabulary) // (vocabulary // centroids)
    table = jnp.asarray(centres[cluster_of] + rng.standard_normal((vocabulary, width), np.float32))
    clusters = jnp.array(centres.T), jnp.asarray(ordering)  # centroids as a drafter keeps them: [d, clusters]
    hidden = table[rng.integers(0, vocabulary, (repeats + 1, batch))]
    hidden += jnp.asarray(rng.standard_normal(hidden.shape, np.float32))

    @jax.jit
    def clustered(hidden, table, weight, ordering, blocks):
        return clustered_argmax(hidden, table, weight.T, ordering, top_k, blocks)

    dense = jax.jit(lambda hidden, table: argmax(matmul(hidden, table.T)))
    transposed = jax.jit(lambda hidden, head: argmax(matmul(hidden, head)))
    nothing = jax.jit(lambda hidden: hidden + 1)
    head, blocks = jnp.array(table.T), in_blocks(table, clusters[1], centroids)
    calls = {
        "dense": lambda rows: dense(rows, table),
        "transposed": lambda rows: transposed(rows, head),
        "gathered": lambda rows: clustered(rows, table, *clusters, None),
        "blocks": lambda rows: clustered(rows, table, *clusters, blocks),
    }
    laps = {name: [] for name in calls}
    num_checked = 0
    for i, rows in enumerate(hidden):
        tokens = {}
        for name, call in calls.items():
            nothing(rows).block_until_ready()  # wakes the threads, which in a round are awake
            began = time.perf_counter()
            tokens[name] = np.asarray(call(rows))
            if i:  # the first call compiles
                laps[name].append(time.perf_counter() - began)
        chosen = np.asarray(jax.lax.top_k(rows @ clusters[0], top_k)[1])
        is_scored = (chosen == cluster_of[tokens["dense"]][:, None]).any(axis=1)
        num_checked += int(is_scored.sum())
        if (tokens["gathered"] != tokens["blocks"]).any() or (tokens["blocks"] != tokens["dense"])[is_scored].any():
            raise RuntimeError(f"the heads choose different tokens: {tokens}")
    if not num_checked:
        raise RuntimeError("no row's best token was in its chosen clusters: nothing was compared with the dense head")

    seconds = {name: statistics.median(times) for name, times in laps.items()}
    seconds["dense"] = min(seconds["dense"], seconds.pop("transposed"))
    speed_ups = {f"{name}_speed_up": seconds["dense"] / seconds[name] for name in ("gathered", "blocks")}
    return {f"{name}_seconds": value for name, value in seconds.items()} | speed_ups
