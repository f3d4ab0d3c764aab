"""One stage of a round, repeated on the device and timed: what it takes by itself, without the call that starts it.

Each stage takes and returns the same record, `Desk`, so that any of them can be the body of a loop.  A stage whose inputs
stayed the same would be run once, before the loop, by a clever compiler: `after` makes each repetition wait for the last.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from decoding.baseline import autoregressive_round
from decoding.fast.jit import jit_flat
from decoding.fast.threads import run_in_threads, split_rows
from decoding.options import Options
from decoding.round import accept_drafts
from decoding.stages.draft import Draft, draft
from decoding.stages.rollback import rollback
from decoding.stages.verify import verify
from decoding.state import DecodeState
from drafter import Drafter, share_cache
from gemma4 import Gemma4
from gemma4.checkpoints.params import linear_weights, named_params
from gemma4.layers import matmul

LAP_SECONDS = 0.2  # of one measurement: many repetitions of a short stage; in 0.08 s the first ones, cold, add 3 to 5 %


class Desk(NamedTuple):
    state: DecodeState
    block: Draft
    logits: Float[Array, "b gamma+1 v"]


Stage = Callable[[Gemma4, Drafter, Desk, Options], Desk]


def draft_stage(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
    """A whole draft of gamma tokens; the next one continues from its last."""
    state = desk.state
    key, draft_key = jax.random.split(state.key)
    shared = share_cache(state.cache, target.config)
    block = draft(
        target, draft_model, desk.block.tokens[:, -1], state.hidden, shared, draft_key,
        draft_length=options.draft_length, sampling=options.draft_sampling,
    )  # fmt: skip
    if options.sampling.is_greedy:
        block = block._replace(probs=desk.block.probs)  # which a greedy round does not write down
    return desk._replace(state=state._replace(key=key), block=block)


def verify_stage(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
    state, logits = _verified(target, desk.state, desk.block.tokens)
    return Desk(state, desk.block._replace(tokens=after(logits, desk.block.tokens)), logits)


def _verified(target: Gemma4, state: DecodeState, draft_tokens: Array) -> tuple[DecodeState, Array]:
    """The target over gamma + 1 tokens, and back to the length before, which a compiler must not see: it would take angles
    and masks out of the loop, a twentieth of the time."""
    verified = verify(target, state.cache, state.token, draft_tokens)
    cache = rollback(verified.cache, after(verified.logits, state.cache.length), jnp.zeros_like(state.token))
    return state._replace(cache=cache, token=after(verified.logits, state.token)), verified.logits


def accept_stage(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
    key, accept_key = jax.random.split(desk.state.key)
    result = accept_drafts(desk.logits, desk.block, options, accept_key)
    block = desk.block._replace(tokens=after(result.next_token, desk.block.tokens))
    return Desk(desk.state._replace(key=key), block, after(result.next_token, desk.logits))


def rollback_stage(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
    """Keep three tokens of a block that is said to have begun three earlier, so that the length stays."""
    length = desk.state.cache.length
    cache = rollback(desk.state.cache, length - 3, jnp.full_like(length, 3))
    return desk._replace(state=desk.state._replace(cache=cache))


def autoregressive_stage(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
    """One token.  Once the budget is used up the row stands still, at the same cost."""
    last = desk.state.last
    state = autoregressive_round(target, desk.state, options)
    return desk._replace(state=state._replace(last=last))


@functools.lru_cache
def draft_and_verify(verified: int) -> Stage:
    """A draft as it stands in a round: behind a verify, here one of `verified` drafts, whatever the draft's length.

    That verify has left none of the drafter's weights in a cache; the longer it was, the slower is the first step behind it.
    """

    def run(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
        drafted = draft_stage(target, draft_model, desk, options)
        tokens = jnp.resize(drafted.block.tokens, (desk.state.token.shape[0], verified))
        state, logits = _verified(target, drafted.state, tokens)
        return drafted._replace(state=state, logits=after(logits, desk.logits))

    return run


def products_stage(target: Gemma4, draft_model: Drafter, desk: Desk, options: Options) -> Desk:
    """The products of gamma + 1 rows a prompt with the target's weights, one after the other, and nothing else.

    What of `verify` is the backend's, and no formula of ours; experts and the per-layer table are left out.
    """
    rows = desk.block.tokens.shape[0] * (options.draft_length + 1)
    product = desk.block.tokens
    params = named_params(target)
    head = target.embed_tokens.weight[...].T if target.cpu_head is None else target.cpu_head[...]
    for weight in (*(params[name] for name in sorted(linear_weights(target))), head):
        # What waits looks at one number of the product: a maximum of all takes up to half as long as the product itself.
        row = after(product, jnp.resize(desk.logits, (rows, weight.shape[0])).astype(weight.dtype))
        product = matmul(row, weight)
    return desk._replace(block=desk.block._replace(tokens=after(product, desk.block.tokens)))


def after(done: Array, value: Array) -> Array:
    """`value`, to the bit, but known only once `done` is: no number differs from itself, no token is below -1."""
    first = done.reshape(-1)[0]
    never = first != first if jnp.issubdtype(done.dtype, jnp.floating) else first < -1
    return jnp.where(never, jnp.zeros_like(value), value)


class Timer:
    """Laps of one compiled stage.  `compile_seconds` is the first call's time, without that of the stage itself.

    repetitions: of a lap; unless given, as many as take LAP_SECONDS.
    threads:     to which the rows are dealt, as in a loop; a lap ends with the last of them.
    """

    def __init__(
        self,
        stage: Stage,
        target: Gemma4,
        draft_model: Drafter,
        state: DecodeState,
        options: Options,
        repetitions: int = 0,
        threads: int = 1,
    ):
        self._run = jit_flat(_repeated(stage), options, target, draft_model)
        self._desks = [_desk(target, part, options) for part in split_rows(state, threads)]
        first = self._time(1)
        again = self._time(1)
        self.compile_seconds = first - again
        self._count = repetitions or 1
        if not repetitions and again < LAP_SECONDS:
            self._count = max(1, int(LAP_SECONDS / max(self._time(5) / 5, 1e-7)))

    def lap(self) -> float:
        """Seconds that one run of the stage takes, as the mean of a lap."""
        return self._time(self._count) / self._count

    def _time(self, count: int) -> float:
        repeat = lambda desk: jax.block_until_ready(self._run((jnp.int32(count), desk)))[1]
        began = time.perf_counter()
        self._desks = run_in_threads([functools.partial(repeat, desk) for desk in self._desks])
        return time.perf_counter() - began


@functools.lru_cache
def _repeated(stage: Stage) -> Callable:
    def run(target, draft_model, counted: tuple[Array, Desk], options: Options) -> tuple[Array, Desk]:
        count, desk = counted
        return count, jax.lax.fori_loop(0, count, lambda _, desk: stage(target, draft_model, desk, options), desk)

    return run


def _desk(target: Gemma4, state: DecodeState, options: Options) -> Desk:
    batch, gamma, vocabulary = state.token.shape[0], options.draft_length, target.config.vocab_size
    tokens = jnp.zeros((batch, gamma), jnp.int32)
    state = jax.tree.map(jnp.copy, state)  # each timer donates its own
    block = Draft(tokens, jnp.zeros((batch, gamma, vocabulary)))
    return Desk(state, block, jnp.zeros((batch, gamma + 1, vocabulary)))
