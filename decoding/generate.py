"""From prompts to text tokens: checks (`checks.py`), prefill, rounds until every row is done."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from decoding.autoregressive import step_of
from decoding.checks import (
    Prompts,
    check_acceptance,
    check_draft_length,
    check_eos_ids,
    check_model,
    check_sampling,
    check_threads,
)
from decoding.loops import rounds, rounds_on_device
from decoding.prefill import prefill
from decoding.sampling import Sampling
from decoding.side_by_side import rounds_side_by_side
from decoding.speculative import Options, round_of
from decoding.state import DecodeState, Round
from decoding.stats import Stats
from drafter import Drafter
from gemma4 import Gemma4

OnRound = Callable[[Round], None]


class Generation(NamedTuple):
    tokens: list[np.ndarray]  # one 1-D int array a row: the new tokens only, the first EOS last
    stats: Stats


def generate(
    target: Gemma4,
    drafter: Drafter,
    prompt_tokens: Prompts,
    *,
    max_new_tokens: int = 64,
    draft_length: int = 4,
    sampling: Sampling = Sampling(),
    draft_sampling: Sampling | None = None,
    acceptance: str = "token",
    key: jax.Array | None = None,
    eos_ids: Sequence[int] = (),
    on_round: OnRound | None = None,
    on_device: bool = False,
    threads: int = 1,
) -> Generation:
    """Speculative decoding.  The text's law is the target's alone; the drafter decides only how fast it comes.

    prompt_tokens:  ids of one prompt, or a batch of prompts of different lengths.
    draft_length:   gamma, tokens proposed a round, 1 .. 32.
    draft_sampling: how drafts are drawn; like `sampling` unless given.
    acceptance:     "token", one by one as in the first papers (`accept.py`), or "block" (`accept_block.py`), which accepts more
                    where something is sampled.
    eos_ids:        ids that end a row's text, which keeps the first of them; none unless given (a model's own are in
                    `target.config.eos_token_ids`).
    key:            `jax.random.key`; needed only where something is sampled (default: key 0).
    on_round:       called with each `Round` as it ends (the prefill's first), arrays on the host; rounds of a millisecond or so
                    come a few at a time, a fortieth of a second late at the most.
    on_device:      run all rounds in one call: a little faster where they are so short, the same tokens.  Nothing is seen
                    before the end: `on_round` gets all rounds then.
    threads:        with `on_device`, deal a batch to so many threads (`side_by_side.py`): on CPU, for small models, up to half
                    as fast again.  What is sampled then comes from a key for each thread.  Settings of JAX reach them by
                    `jax.config.update`, not by its context managers.
    Errors:         ValueError for a bad prompt or setting, for prompt + max_new_tokens past the context, if drafter and
                    target do not fit each other, and for more than one thread without `on_device`, or where several devices
                    share the target.
    """
    check_model("target", target, Gemma4)
    check_model("drafter", drafter, Drafter).config.check_fits(target.config)
    options = Options(
        check_draft_length(draft_length),
        check_sampling(sampling),
        check_sampling(sampling if draft_sampling is None else draft_sampling),
        check_eos_ids(eos_ids),
        check_acceptance(acceptance),
    )
    threads = check_threads(threads, target, on_device)
    state = start(target, prompt_tokens, max_new_tokens, options, key)
    return collect(loop_of(on_device, threads)(state, round_of, options, target, drafter), on_round)


def generate_autoregressive(
    target: Gemma4,
    prompt_tokens: Prompts,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    eos_ids: Sequence[int] = (),
    on_round: OnRound | None = None,
    on_device: bool = False,
    threads: int = 1,
) -> Generation:
    """The baseline: the same without a drafter, one token a round.  Errors: as `generate`."""
    check_model("target", target, Gemma4)
    options = Options(0, check_sampling(sampling), eos_ids=check_eos_ids(eos_ids))
    threads = check_threads(threads, target, on_device)
    state = start(target, prompt_tokens, max_new_tokens, options, key)
    return collect(loop_of(on_device, threads)(state, step_of, options, target), on_round)


def loop_of(on_device: bool, threads: int = 1) -> Callable[..., Iterator[Round]]:
    """(state, step, options, *models) -> rounds, the prefill's first."""
    if threads > 1:
        return functools.partial(rounds_side_by_side, threads=threads)
    return rounds_on_device if on_device else rounds


def start(
    target: Gemma4, prompt_tokens: Prompts, max_new_tokens: int, options: Options, key: jax.Array | None
) -> DecodeState:
    """The state after the prefill of a generation with these options.  Errors: as `generate`."""
    return prefill(
        target,
        prompt_tokens,
        max_new_tokens=max_new_tokens,
        draft_length=options.draft_length,
        sampling=options.sampling,
        key=key,
        eos_ids=options.eos_ids,
    )


def collect(rounds: Iterator[Round], on_round: OnRound | None) -> Generation:
    """What all rounds emitted, row by row, and what happened in them."""
    stats, rows = Stats(), None
    for last in rounds:
        if rows is None:
            rows = [[] for _ in last.num_emitted]
            stats.add_prefill(last)
        else:
            stats.add_round(last)
        for row, tokens, count in zip(rows, last.tokens, last.num_emitted, strict=True):
            row.extend(tokens[:count])
        if on_round:
            on_round(last)
    return Generation([np.array(row, np.int32) for row in rows], stats)
