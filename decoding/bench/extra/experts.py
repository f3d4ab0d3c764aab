"""How long the experts of one layer take: every expert for every token, or each token's own experts only."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gemma4 import PRESETS
from gemma4.config import Config
from gemma4.fast.experts import experts_sparse
from gemma4.moe import Experts, experts_dense

LAYOUT, SCALE = "26B-A4B", 4  # a quarter of its widths, so that one layer takes 190 MB
TOKENS = (1, 5, 40, 512)  # a step, a verify, a verify of eight prompts, a chunk of a prefill
REPEATS = 5


def time_experts(tokens: Sequence[int] = TOKENS, runs: int = 5, config: Config = PRESETS[LAYOUT]) -> list[dict]:
    """For each number of tokens: median seconds of the reference, `experts_dense`, and of its twin, `experts_sparse`.

    float32, batch 1; each token's experts are drawn at random, others in each repetition.
    """
    experts = Experts(_narrow(config), rngs=nnx.Rngs(0), dtype=jnp.float32)
    forms = {"dense": experts_dense, "chosen": experts_sparse}
    timers = {(count, name): _timer(experts, form, config, count) for count in tokens for name, form in forms.items()}
    laps: dict[tuple[int, str], list[float]] = {key: [] for key in timers}
    for _ in range(runs):
        for key, lap in timers.items():
            laps[key].append(lap())
    return [
        {"tokens": count, **{f"{name} seconds": statistics.median(laps[count, name]) for name in forms}}
        for count in tokens
    ]


def _narrow(config: Config) -> Config:
    return dataclasses.replace(
        config, hidden_size=config.hidden_size // SCALE, moe_intermediate_size=config.moe_intermediate_size // SCALE
    )


def _timer(experts: Experts, form: Callable, config: Config, count: int) -> Callable[[], float]:
    width, top_k = config.hidden_size // SCALE, config.top_k_experts
    keys = jax.random.split(jax.random.key(count), (REPEATS, count))

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.choice(key, config.num_experts, (top_k,), replace=False)

    visits = jax.vmap(jax.vmap(draw))(keys)[:, None]  # [repeats, 1, count, top_k]
    x = jax.random.normal(jax.random.key(0), (1, count, width))
    weights = jnp.full((1, count, top_k), 1 / top_k)

    def repeated(gate_up_proj: jax.Array, down_proj: jax.Array, x: jax.Array, visits: jax.Array) -> jax.Array:
        def once(x: jax.Array, visits: jax.Array) -> tuple[jax.Array, None]:
            return x + form(gate_up_proj, down_proj, x, weights, visits), None  # the next repetition waits for this one

        return jax.lax.scan(once, x, visits)[0]

    run = functools.partial(jax.jit(repeated), experts.gate_up_proj[...], experts.down_proj[...])
    run(x, visits)  # compiles

    def lap() -> float:
        began = time.perf_counter()
        run(x, visits).block_until_ready()
        return (time.perf_counter() - began) / REPEATS

    return lap
