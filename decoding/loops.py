"""The loop over rounds, twice: one call a round, so that the host sees each as it ends; or one call for all of them.

Both yield the same rounds.  The host's loop calls a round before it reads the one before it, so that the device always has
work: what a call, a copy and the display cost is done meanwhile (`gemma4-mtp bench` prints both loops' speed).
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from decoding.compiled import Step, compiled
from decoding.speculative import Options
from decoding.state import DecodeState, Round


def rounds(state: DecodeState, step: Step, options: Options, *models) -> Iterator[Round]:
    """Run `step` until every row is done; yield the prefill's round, then each round as it ends, on the host."""
    run = compiled(_one_round(step), options, *models)
    last, done = jax.device_get((state.last, state.done))
    yield last
    if not done.all():
        state, report = run(state)
    while not done.all():
        state, next_report = run(state)
        last, done = jax.device_get(report)
        yield last
        report = next_report


@functools.lru_cache(maxsize=64)
def _one_round(step: Step) -> Callable[..., tuple[DecodeState, tuple[Round, Bool[Array, " b"]]]]:
    """(*models, state, options) -> the next state, and a copy of `last` and `done`, to be read after that is donated.

    The last call, ahead of the end, finds all rows done: it returns at once, where a forward of a large model would not.
    """

    def run(*args):
        *models, state, options = args

        def is_due(carry):
            state, has_run = carry
            return ~(has_run | state.done.all())

        def one_round(carry):
            state, _ = carry
            return step(*models, state, options), jnp.bool_(True)

        # A loop that turns once at most: XLA would copy the cache into and out of the branches of a `cond`.
        state, _ = jax.lax.while_loop(is_due, one_round, (state, jnp.bool_(False)))
        return state, (state.last, state.done)

    return run


def rounds_on_device(state: DecodeState, step: Step, options: Options, *models) -> Iterator[Round]:
    """The same rounds, by one call that returns when every row is done."""
    most = -(-int(state.budget.max()) // 128) * 128  # a round emits a token at least; few sizes mean few compilations
    first = jax.device_get(state.last)
    _, log, count = compiled(_all_rounds(step, most), options, *models)(state)
    log, count = jax.device_get((log, count))
    yield first
    for i in range(count):
        yield Round(*(values[i] for values in log))


@functools.lru_cache(maxsize=64)
def _all_rounds(step: Step, most: int) -> Callable[..., tuple[DecodeState, Round, Int[Array, ""]]]:
    """(*models, state, options) -> the last state, what each round did (stacked, room for `most`), how many there were."""

    def run(*args):
        *models, state, options = args

        def one_round(carry):
            state, log, count = carry
            state = step(*models, state, options)
            return state, jax.tree.map(lambda rows, row: rows.at[count].set(row), log, state.last), count + 1

        log = jax.tree.map(lambda row: jnp.zeros((most, *row.shape), row.dtype), state.last)
        return jax.lax.while_loop(lambda carry: ~carry[0].done.all(), one_round, (state, log, jnp.int32(0)))

    return run
