"""How long a drafter's head takes to find the best token: dense, clustered with table rows gathered, clustered in blocks."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from drafter.clustering import best_candidate, clustered_argmax
from drafter.fast import candidates_in_blocks, in_blocks
from gemma4.fast.argmax import argmax

CHOICES = (
    64  # one after the other in a call, each for another hidden state, so that none finds its table rows in a cache
)


def time_heads(
    vocabulary: int = 262_144, width: int = 256, centroids: int = 2048, top_k: int = 32, runs: int = 9
) -> dict[str, float]:
    """Median seconds of one choice by each head, batch 1, float32, and how many times as long the dense one takes.

    The defaults are E2B's.
    "gathered" is the reference, `clustering.clustered_argmax`, and "blocks" its twin, `drafter.fast.candidates_in_blocks`.
    Errors: RuntimeError if the two clustered heads ever differ, or differ from the dense one where its choice is among the
    tokens that they score; or if there was no such hidden state.
    """
    rng = np.random.default_rng(0)
    ordering = rng.permutation(vocabulary).astype(np.int32)
    cluster_of = np.empty(vocabulary, np.int32)
    cluster_of[ordering] = np.arange(vocabulary) // (vocabulary // centroids)
    centres = 2 * rng.standard_normal((centroids, width), np.float32)
    table = jnp.asarray(centres[cluster_of] + rng.standard_normal((vocabulary, width), np.float32))
    hidden = table[rng.integers(0, vocabulary, CHOICES)] + rng.standard_normal((CHOICES, width), np.float32)

    weight, ordering = jnp.array(centres.T), jnp.asarray(ordering)  # centroids as a drafter keeps them: [d, clusters]
    gathered = functools.partial(_gathered, top_k=top_k)
    blocked = functools.partial(_in_blocks, top_k=top_k)
    heads = {
        "dense": _timer(lambda row, table: argmax(row @ table.T), hidden, table),
        "gathered": _timer(gathered, hidden, table, weight, ordering),
        "blocks": _timer(blocked, hidden, in_blocks(table, ordering, centroids), weight, ordering),
    }
    laps: dict[str, list[float]] = {name: [] for name in heads}
    is_scored = np.zeros(CHOICES, bool)
    for _ in range(runs):
        tokens = {}
        for name, lap in heads.items():
            seconds, tokens[name] = lap()
            laps[name].append(seconds)
        chosen = np.asarray(jax.lax.top_k(hidden @ weight, top_k)[1])
        is_scored = (chosen == cluster_of[tokens["dense"]][:, None]).any(axis=1)
        _check(tokens, is_scored)
    seconds = {name: statistics.median(times) for name, times in laps.items()}
    return {f"{name} seconds": value for name, value in seconds.items()} | {
        "dense over gathered": seconds["dense"] / seconds["gathered"],
        "dense over blocks": seconds["dense"] / seconds["blocks"],
        "rows whose best token was scored": float(is_scored.mean()),
    }


def _gathered(row: jax.Array, table: jax.Array, weight: jax.Array, ordering: jax.Array, top_k: int) -> jax.Array:
    return clustered_argmax(row, table, weight.T, ordering, top_k)


def _in_blocks(row: jax.Array, blocks: jax.Array, weight: jax.Array, ordering: jax.Array, top_k: int) -> jax.Array:
    return best_candidate(*candidates_in_blocks(row, blocks, weight.T, ordering, top_k), len(ordering))


def _timer(head: Callable, hidden: jax.Array, *arrays: jax.Array) -> Callable[[], tuple[float, np.ndarray]]:
    """A function that makes a lap: seconds for one choice, and all choices."""

    def choose_all(hidden: jax.Array, arrays: tuple[jax.Array, ...]) -> jax.Array:
        return jax.lax.map(lambda state: head(state[None], *arrays)[0], hidden)

    run = jax.jit(choose_all)
    run(hidden, arrays)  # compiles

    def lap() -> tuple[float, np.ndarray]:
        began = time.perf_counter()
        tokens = np.asarray(run(hidden, arrays))
        return (time.perf_counter() - began) / len(hidden), tokens

    return lap


def _check(tokens: dict[str, np.ndarray], is_scored: np.ndarray) -> None:
    if (tokens["gathered"] != tokens["blocks"]).any() or (tokens["blocks"] != tokens["dense"])[is_scored].any():
        raise RuntimeError(f"the heads choose different tokens: {tokens}")
    if not is_scored.any():
        raise RuntimeError(
            "no hidden state's best token was in its best clusters: nothing was compared with the dense head"
        )
