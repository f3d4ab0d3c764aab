"""How fast: tokens a second of either loop, and the time of each stage on its own.  For people, not for tests.

Stages are called here one after the other, as in a round by hand, each call's own cost included.  `decoding/bench/stages.py`
repeats a stage within one call, which is what a compiled round does: those figures are smaller.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.compiled import compiler_options, laid_out
from decoding.draft import Draft, draft
from decoding.generate import OnRound
from decoding.prefill import prefill
from decoding.rollback import rollback
from decoding.speculative import Options, judge
from decoding.state import Round
from decoding.verify import verify
from drafter import Drafter, share_cache
from gemma4 import Gemma4, KVCache

RUNS = 3  # of each loop, while they are short: no new one starts after RUN_SECONDS
RUN_SECONDS = 2.0
LONGEST_RUN = 5.0  # seconds; a longer one is stopped and counts as far as it came
STAGE_REPEATS = 10
STAGE_SECONDS = 3.0

Run = Callable[[OnRound], Any]  # one generation that calls back after each round


class Speed(NamedTuple):
    """Of the rounds after the prefill."""

    tokens_per_second: float
    seconds_per_round: float


class Figures(NamedTuple):
    """What was measured; None where there was nothing to measure."""

    autoregressive: Speed | None
    speculative: Speed | None = None
    stages: dict[str, float] | None = None  # seconds

    @property
    def speed_up(self) -> float | None:
        if self.speculative is None or self.autoregressive is None:
            return None
        return self.speculative.tokens_per_second / self.autoregressive.tokens_per_second

    def as_dict(self) -> dict:
        as_dict = lambda speed: None if speed is None else speed._asdict()
        return {
            "speculative": as_dict(self.speculative),
            "autoregressive": as_dict(self.autoregressive),
            "speed_up": self.speed_up,
            "stage_seconds": self.stages,
        }


class _Enough(Exception):
    pass


def compare(*loops: Run) -> list[Speed | None]:
    """The speed of each loop, compilation and prefill left out: the median of a few runs, taken in turn.

    None for a loop that ends with its prefill.
    """
    for run in loops:
        _time_rounds(run, seconds=0.0)  # compiles
    began, speeds = time.perf_counter(), [[] for _ in loops]
    for _ in range(RUNS):
        for run, results in zip(loops, speeds, strict=True):
            results.append(_time_rounds(run, LONGEST_RUN))
        if time.perf_counter() - began > RUN_SECONDS:
            break
    return [_median(results) for results in speeds]


def _time_rounds(run: Run, seconds: float) -> Speed | None:
    """Run until the first round that ends `seconds` after the prefill, or to the end."""
    ends, emitted = [], []

    def on_round(last: Round) -> None:
        ends.append(time.perf_counter())
        emitted.append(int(last.num_emitted.sum()))
        if len(ends) > 1 and ends[-1] - ends[0] >= seconds:
            raise _Enough

    with contextlib.suppress(_Enough):
        run(on_round)
    if len(ends) < 2:
        return None
    elapsed = ends[-1] - ends[0]
    return Speed(sum(emitted[1:]) / elapsed, elapsed / (len(ends) - 1))


def _median(speeds: list[Speed | None]) -> Speed | None:
    if None in speeds:
        return None
    return Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))


def time_stages(
    target: Gemma4, drafter: Drafter, prompt: Sequence[int], options: Options, max_new_tokens: int
) -> dict[str, float]:
    """Median seconds of draft, verify, accept and rollback in the first round after `prompt`, each compiled on its own.

    The cache has the size that a generation of `max_new_tokens` gives it.  One compiled round fuses the stages, so
    their sum is not its time.
    """
    key = jax.random.key(0)
    state = prefill(target, [prompt], max_new_tokens=max_new_tokens, draft_length=options.draft_length, key=key)
    models, structure = jax.tree.flatten(laid_out(target, drafter))
    length = np.array(state.cache.length)
    laps: dict[str, list[float]] = {"draft": [], "verify": [], "accept": [], "rollback": []}

    def timed(name: str, stage: Callable, *args):
        run = _jitted(stage, structure, options)
        began = time.perf_counter()
        result = jax.block_until_ready(run(models, *args))
        laps[name].append(time.perf_counter() - began)
        return result

    def one_round(cache: KVCache) -> KVCache:
        block = timed("draft", _draft, cache, state.token, state.hidden, key)
        verified = timed("verify", _verify, cache, state.token, block.tokens)
        result = timed("accept", _accept, verified.logits, block.tokens, block.probs, key)
        cache = timed("rollback", _rollback, verified.cache, length, result.num_accepted + 1)
        return cache._replace(length=jnp.asarray(length))  # every repetition starts from the same place

    cache = one_round(state.cache)  # compiles
    for times in laps.values():
        times.clear()
    began = time.perf_counter()
    while len(laps["draft"]) < STAGE_REPEATS and time.perf_counter() - began < STAGE_SECONDS:
        cache = one_round(cache)
    return {name: statistics.median(times) for name, times in laps.items()}


@functools.lru_cache(maxsize=16)
def _jitted(stage: Callable, structure: jax.tree_util.PyTreeDef, options: Options) -> Callable:
    """The weights go in as a flat list: to walk the modules at every call takes longer than a small model's stage."""

    def run(models, first, *rest):
        return stage(*jax.tree.unflatten(structure, models), options, first, *rest)

    # A cache that is written must be donated, or the copy of it would be timed.
    donated = "first" if stage in (_verify, _rollback) else ()
    return jax.jit(run, donate_argnames=donated, compiler_options=compiler_options())


def _draft(target, drafter, options, cache: KVCache, token, hidden, key):
    return draft(
        target, drafter, token, hidden, share_cache(cache, target.config), key,
        draft_length=options.draft_length, sampling=options.draft_sampling,
    )  # fmt: skip


def _verify(target, drafter, options, cache: KVCache, token, draft_tokens):
    return verify(target, cache, token, draft_tokens)


def _accept(target, drafter, options, logits, draft_tokens, draft_probs, key):
    return judge(logits, Draft(draft_tokens, draft_probs), options, key)


def _rollback(target, drafter, options, cache: KVCache, length, num_kept):
    return rollback(cache, length, num_kept)
