"""One stage of a round, repeated in one call and timed: how long it takes alone, without the call that starts it.

Every stage takes and returns the same record, `StageInputs`, so that each of them can be the body of a loop.  A compiler may
run a stage whose inputs never change once, before the loop; `after` makes each repetition wait for the one before it.
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

LAP_SECONDS = 0.2  # of one lap of a short stage: so many repetitions that the first ones, on cold caches, do not count


class StageInputs(NamedTuple):
    """What any stage may read.  A stage replaces what it computes."""

    state: DecodeState
    drafted: Draft
    logits: Float[Array, "b gamma+1 v"]


Stage = Callable[[Gemma4, Drafter, StageInputs, Options], StageInputs]


def draft_stage(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
    """A whole draft of gamma tokens; the next repetition continues from its last token."""
    state = inputs.state
    key, draft_key = jax.random.split(state.key)
    shared = share_cache(state.cache, target.config)
    drafted = draft(
        target, draft_model, inputs.drafted.tokens[:, -1], state.hidden, shared, draft_key,
        draft_length=options.draft_length, sampling=options.draft_sampling, kernels=options.kernels,
    )  # fmt: skip
    if options.sampling.is_greedy:
        drafted = drafted._replace(probs=inputs.drafted.probs)  # a greedy round never writes them to memory
    return inputs._replace(state=state._replace(key=key), drafted=drafted)


def verify_stage(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
    state, logits = _verified(target, inputs.state, inputs.drafted.tokens)
    return StageInputs(state, inputs.drafted._replace(tokens=after(logits, inputs.drafted.tokens)), logits)


def _verified(target: Gemma4, state: DecodeState, draft_tokens: Array) -> tuple[DecodeState, Array]:
    """Run the target over gamma + 1 tokens, and roll back to the length before.

    The compiler must not see that the length is the same each time: it would move RoPE and masks out of the loop.
    """
    verified = verify(target, state.cache, state.token, draft_tokens)
    cache = rollback(verified.cache, after(verified.logits, state.cache.length), jnp.zeros_like(state.token))
    return state._replace(cache=cache, token=after(verified.logits, state.token)), verified.logits


def accept_stage(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
    key, accept_key = jax.random.split(inputs.state.key)
    accepted = accept_drafts(inputs.logits, inputs.drafted, options, accept_key)
    drafted = inputs.drafted._replace(tokens=after(accepted.next_token, inputs.drafted.tokens))
    return StageInputs(inputs.state._replace(key=key), drafted, after(accepted.next_token, inputs.logits))


def rollback_stage(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
    """Keep three tokens of a forward that is claimed to have begun three tokens earlier, so that the length stays the same."""
    length = inputs.state.cache.length
    cache = rollback(inputs.state.cache, length - 3, jnp.full_like(length, 3))
    return inputs._replace(state=inputs.state._replace(cache=cache))


def autoregressive_stage(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
    """One token.  Once its budget is used up a row stays where it is, at the same cost."""
    last = inputs.state.last
    state = autoregressive_round(target, inputs.state, options)
    return inputs._replace(state=state._replace(last=last))


@functools.lru_cache
def draft_and_verify(verified: int) -> Stage:
    """A draft as in a round: behind a verify, here one of `verified` drafts, whatever the draft's own length.

    That verify leaves none of the drafter's weights in the processor's cache.  The longer it is, the slower is the first draft
    step behind it.
    """

    def run(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
        drafted = draft_stage(target, draft_model, inputs, options)
        tokens = jnp.resize(drafted.drafted.tokens, (inputs.state.token.shape[0], verified))
        state, logits = _verified(target, drafted.state, tokens)
        return drafted._replace(state=state, logits=after(logits, inputs.logits))

    return run


def products_stage(target: Gemma4, draft_model: Drafter, inputs: StageInputs, options: Options) -> StageInputs:
    """The products of gamma + 1 hidden states a row with the target's linear weights and its head, and nothing else.

    The part of `verify` that is up to the backend alone.  Experts and the per-layer embeddings are left out.
    """
    tokens = inputs.drafted.tokens.shape[0] * (options.draft_length + 1)
    product = inputs.drafted.tokens
    params = named_params(target)
    for weight in (*(params[name] for name in sorted(linear_weights(target))), target.embed_tokens.weight[...].T):
        # `after` reads one number of the product: a maximum over all of them would take up to half as long as the product.
        x = after(product, jnp.resize(inputs.logits, (tokens, weight.shape[0])).astype(weight.dtype))
        product = x @ weight
    return inputs._replace(drafted=inputs.drafted._replace(tokens=after(product, inputs.drafted.tokens)))


def after(done: Array, value: Array) -> Array:
    """`value`, to the bit, but known only once `done` is: a finite number equals itself, and no token is below -1."""
    first = done.reshape(-1)[0]
    never = first != first if jnp.issubdtype(done.dtype, jnp.floating) else first < -1
    return jnp.where(never, jnp.zeros_like(value), value)


class Timer:
    """Laps of one compiled stage: a lap is one call that repeats it.

    repetitions:     in a lap; unless given, as many as take LAP_SECONDS.
    threads:         over which the rows are split, as in a loop; a lap ends with the slowest thread.
    compile_seconds: the time of the first call, less that of the stage itself.
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
        self._inputs = [_stage_inputs(target, part, options) for part in split_rows(state, threads)]
        first = self._time(1)
        again = self._time(1)
        self.compile_seconds = first - again
        self._count = repetitions or 1
        if not repetitions and again < LAP_SECONDS:
            self._count = max(1, int(LAP_SECONDS / max(self._time(5) / 5, 1e-7)))

    def lap(self) -> float:
        """Seconds that the stage takes once: the mean over the repetitions of a lap."""
        return self._time(self._count) / self._count

    def _time(self, count: int) -> float:
        def repeat(inputs: StageInputs) -> StageInputs:
            return jax.block_until_ready(self._run((jnp.int32(count), inputs)))[1]

        began = time.perf_counter()
        self._inputs = run_in_threads([functools.partial(repeat, inputs) for inputs in self._inputs])
        return time.perf_counter() - began


@functools.lru_cache
def _repeated(stage: Stage) -> Callable:
    def run(
        target: Gemma4, draft_model: Drafter, counted: tuple[Array, StageInputs], options: Options
    ) -> tuple[Array, StageInputs]:
        count, inputs = counted
        return count, jax.lax.fori_loop(0, count, lambda _, inputs: stage(target, draft_model, inputs, options), inputs)

    return run


def _stage_inputs(target: Gemma4, state: DecodeState, options: Options) -> StageInputs:
    batch, gamma, vocabulary = state.token.shape[0], options.draft_length, target.config.vocab_size
    tokens = jnp.zeros((batch, gamma), jnp.int32)
    state = jax.tree.map(jnp.copy, state)  # because every timer donates its own
    drafted = Draft(tokens, jnp.zeros((batch, gamma, vocabulary), jnp.float32))
    return StageInputs(state, drafted, jnp.zeros((batch, gamma + 1, vocabulary), jnp.float32))
