"""How long a drafter's head takes to find the best token: dense, clustered with rows gathered, clustered in blocks."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from decoding.fast.jit import compiler_options
from drafter.clustering import clustered_argmax
from drafter.fast import in_blocks
from gemma4.functional import argmax
from gemma4.layers import matmul

CHOICES = 64  # one after the other in a call, each for another hidden row, so that no call finds its rows in a cache


def time_heads(
    vocabulary: int = 262_144, width: int = 256, centroids: int = 2048, top_k: int = 32, runs: int = 9
) -> dict[str, float]:
    """Median seconds of one choice by each head, batch 1, float32, and how many times as long the dense one takes.

    The defaults are E2B's.  The dense head is given the faster of two layouts of its table: as it is, and transposed.
    Errors: RuntimeError if the two clustered heads ever differ, or differ from the dense one where its choice is among the
    tokens that they score; or if there was no such row.
    """
    rng = np.random.default_rng(0)
    ordering = rng.permutation(vocabulary).astype(np.int32)
    cluster_of = np.empty(vocabulary, np.int32)
    cluster_of[ordering] = np.arange(vocabulary) // (vocabulary // centroids)
    centres = 2 * rng.standard_normal((centroids, width), np.float32)
    table = jnp.asarray(centres[cluster_of] + rng.standard_normal((vocabulary, width), np.float32))
    rows = table[rng.integers(0, vocabulary, CHOICES)] + rng.standard_normal((CHOICES, width), np.float32)

    weight, ordering = jnp.array(centres.T), jnp.asarray(ordering)  # centroids as a drafter keeps them: [d, clusters]
    clustered = lambda row, table, weight, ordering, blocks: clustered_argmax(
        row, table, weight.T, ordering, top_k, blocks
    )
    heads = {
        "dense": _timer(lambda row, table: argmax(matmul(row, table.T)), rows, table),
        "dense transposed": _timer(lambda row, head: argmax(matmul(row, head)), rows, jnp.array(table.T)),
        "gathered": _timer(clustered, rows, table, weight, ordering, None),
        "blocks": _timer(clustered, rows, table, weight, ordering, in_blocks(table, ordering, centroids)),
    }
    laps: dict[str, list[float]] = {name: [] for name in heads}
    for _ in range(runs):
        tokens = {}
        for name, lap in heads.items():
            seconds, tokens[name] = lap()
            laps[name].append(seconds)
        chosen = np.asarray(jax.lax.top_k(rows @ weight, top_k)[1])
        is_scored = (chosen == cluster_of[tokens["dense"]][:, None]).any(axis=1)
        _check(tokens, is_scored)
    seconds = {name: statistics.median(times) for name, times in laps.items()}
    dense = min(seconds["dense"], seconds.pop("dense transposed"))
    return {f"{name} seconds": value for name, value in (seconds | {"dense": dense}).items()} | {
        "dense over gathered": dense / seconds["gathered"],
        "dense over blocks": dense / seconds["blocks"],
        "rows whose best token was scored": float(is_scored.mean()),
    }


def _timer(head: Callable, rows: jax.Array, *arrays) -> Callable[[], tuple[float, np.ndarray]]:
    """A lap: seconds for one choice, and all choices."""

    def choose_all(rows, arrays):
        return jax.lax.map(lambda row: head(row[None], *arrays)[0], rows)

    run = jax.jit(choose_all, compiler_options=compiler_options())
    run(rows, arrays)  # compiles

    def lap():
        began = time.perf_counter()
        tokens = np.asarray(run(rows, arrays))
        return (time.perf_counter() - began) / len(rows), tokens

    return lap


def _check(tokens: dict[str, np.ndarray], is_scored: np.ndarray) -> None:
    if (tokens["gathered"] != tokens["blocks"]).any() or (tokens["blocks"] != tokens["dense"])[is_scored].any():
        raise RuntimeError(f"the heads choose different tokens: {tokens}")
    if not is_scored.any():
        raise RuntimeError("no row's best token was in its chosen clusters: nothing was compared with the dense head")
