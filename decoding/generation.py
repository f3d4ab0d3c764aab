"""From prompts to text tokens: prefill, then rounds until every row is done.

The loop is `speculative_rounds`.  `generate(..., loop="plain")` runs it as it is written here; the other loops of `generate`
(`decoding/fast`) give the same tokens sooner.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from decoding import fast
from decoding.baseline import autoregressive_round, autoregressive_step
from decoding.draft_length import AUTO, DraftLengths
from decoding.finite import not_finite
from decoding.options import Options
from decoding.processors import Processor
from decoding.prompts import Prompts
from decoding.round import speculative_round, speculative_step
from decoding.sampling import Sampling
from decoding.stages.prefill import prefill
from decoding.state import DecodeState, Round
from decoding.stats import Stats
from decoding.stop import StopStrings
from drafter import Drafter
from gemma4 import Gemma4

LOOPS = ("plain", *fast.LOOPS)
OnRound = Callable[[Round], None]
Model = TypeVar("Model", bound=nnx.Module)


def speculative_rounds(target: Gemma4, draft_model: Drafter, state: DecodeState, options: Options) -> Iterator[Round]:
    """Run rounds until every row is done; yield the prefill's round, then each round as it ends, on the host.

    Errors: NotFinite if the numbers of the target or the drafter are not finite.
    """
    yield delivered(state, target, draft_model)
    while not state.done.all():
        state = speculative_step(target, draft_model, state, options)
        yield delivered(state, target, draft_model)


def autoregressive_rounds(target: Gemma4, state: DecodeState, options: Options) -> Iterator[Round]:
    """The same without a drafter: one token a round."""
    yield delivered(state, target)
    while not state.done.all():
        state = autoregressive_step(target, state, options)
        yield delivered(state, target)


def delivered(state: DecodeState, target: Gemma4, draft_model: Drafter | None = None) -> Round:
    """The state's last round, on the host.  Errors: NotFinite."""
    if not state.is_finite.all():
        raise not_finite(target, draft_model)
    return jax.device_get(state.last)


class Generation(NamedTuple):
    tokens: list[np.ndarray]  # one 1-D int array a row: the new tokens only; an EOS is the last of them
    stats: Stats
    logprobs: list[np.ndarray] | None = None  # of the tokens, if asked for; float32


def generate(
    target: Gemma4,
    draft_model: Drafter,
    prompt_tokens: Prompts,
    *,
    max_new_tokens: int = 64,
    draft_length: int | str | DraftLengths = 4,
    sampling: Sampling = Sampling(),
    draft_sampling: Sampling | None = None,
    acceptance: str | Callable = "token",
    key: jax.Array | None = None,
    attention_mask: Any = None,
    eos_ids: Sequence[int] = (),
    stop_strings: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    processors: Sequence[Processor] = (),
    logprobs: bool = False,
    on_round: OnRound | None = None,
    loop: str = "streamed",
    threads: int = 1,
) -> Generation:
    """Speculative decoding.  The text follows the target's distribution alone; the drafter only decides how fast it comes.

    prompt_tokens:  ids of one prompt, or a batch of prompts of different lengths.
    draft_length:   gamma, tokens proposed a round, 1 .. 32.  "auto" chooses it round by round, 0 to 8, from the time of rounds
                    and the acceptance so far (`draft_length.py`); so does a `DraftLengths`, which keeps what it has learnt for
                    the next generation of this pair.  Only with loop="streamed".
    draft_sampling: how drafts are drawn; like `sampling` unless given.
    acceptance:     "token", draft by draft (`stages/accept.py`), or "block" (`stages/accept_block.py`), which accepts more
                    where the text is sampled; or a function like `stages.accept.decide`: your own rule.
    eos_ids:        ids that end a row's text, which keeps the first of them; none unless given (a model's own are in
                    `target.config.eos_token_ids`).
    key:            `jax.random.key`; needed only where something is sampled (default: key 0).  Or one key for each row, [b]:
                    then a row's text is what the prompt alone would give with that key.
    attention_mask: of a padded array of ids, as transformers' tokenizers return it: 1 for a token, 0 for padding.
    stop_strings:   texts that end a row, with the token that completes one; needs the `tokenizer`.
    processors:     changes of the target's distribution by what was emitted (`processors.py`), exact under speculation.
    logprobs:       return the log-probability of each token under the target alone (`sampling.token_logprobs`).
    on_round:       called with each `Round` as it ends (the prefill's first), arrays on the host.
    loop:           "plain": `speculative_rounds`, the reference, one call a round.
                    "streamed": short rounds several a call, delivered at most 25 ms late.
                    "on_device": all rounds in one call; `on_round` gets them at the end.
                    The tokens are the same, except that sampled tokens may differ where rounding decides.
    threads:        with loop="on_device", split a batch over this many threads: pays for small models on a CPU.  Each thread
                    draws from a key of its own.  They see JAX settings made with `jax.config.update`, not with a context
                    manager.
    Errors:         ValueError for a bad prompt or setting, for prompt + max_new_tokens past the context, if drafter and
                    target do not fit each other, and for threads with another loop, or with a target split over devices;
                    `finite.NotFinite`, also a ValueError, if numbers of the target or the drafter are not finite.
    """
    _check_model("target", target, Gemma4)
    _check_model("draft_model", draft_model, Drafter).config.check_fits(target.config)
    lengths = _lengths(draft_length, loop)
    longest: Any = draft_length if lengths is None else lengths.longest  # Options checks it
    options = Options(longest, sampling, draft_sampling, eos_ids, acceptance, processors, logprobs)
    if options.draft_length == 0:
        raise ValueError("draft_length: expected at least 1, got 0; generate_autoregressive decodes without a drafter")
    _check_loop(loop, threads, target)
    cut = StopStrings(stop_strings, tokenizer).cut if stop_strings else iter
    how = {"max_new_tokens": max_new_tokens, "key": key, "attention_mask": attention_mask}
    if loop == "plain":
        state = prefill(target, prompt_tokens, options, **how)
        return collect(cut(speculative_rounds(target, draft_model, state, options)), on_round)
    target, draft_model, options = fast.for_backend(target), fast.for_backend(draft_model), fast.with_kernels(options)
    state = prefill(target, prompt_tokens, options, **how, cache_room=fast.FIRST_ROOM)
    if lengths is not None:
        rounds = fast.rounds_of_chosen_lengths(state, options, target, draft_model, lengths)
        return collect(cut(rounds), on_round)
    return collect(cut(fast.run(loop, threads)(state, speculative_round, options, target, draft_model)), on_round)


def generate_autoregressive(
    target: Gemma4,
    prompt_tokens: Prompts,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    attention_mask: Any = None,
    eos_ids: Sequence[int] = (),
    stop_strings: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    processors: Sequence[Processor] = (),
    logprobs: bool = False,
    on_round: OnRound | None = None,
    loop: str = "streamed",
    threads: int = 1,
) -> Generation:
    """The baseline: the same without a drafter, one token a round.  Errors: as `generate`."""
    _check_model("target", target, Gemma4)
    options = Options(0, sampling, eos_ids=eos_ids, processors=processors, logprobs=logprobs)
    _check_loop(loop, threads, target)
    cut = StopStrings(stop_strings, tokenizer).cut if stop_strings else iter
    how = {"max_new_tokens": max_new_tokens, "key": key, "attention_mask": attention_mask}
    if loop == "plain":
        state = prefill(target, prompt_tokens, options, **how)
        return collect(cut(autoregressive_rounds(target, state, options)), on_round)
    target, options = fast.for_backend(target), fast.with_kernels(options)
    state = prefill(target, prompt_tokens, options, **how, cache_room=fast.FIRST_ROOM)
    return collect(cut(fast.run(loop, threads)(state, autoregressive_round, options, target)), on_round)


def collect(rounds: Iterator[Round], on_round: OnRound | None = None) -> Generation:
    """What all rounds emitted, row by row, and the counts of what happened."""
    stats, rows, logprobs = Stats(), [], None
    for number, last in enumerate(rounds):
        if number == 0:
            rows = [[] for _ in last.num_emitted]
            logprobs = None if last.logprobs is None else [[] for _ in rows]
            stats.add_prefill(last)
        else:
            stats.add_round(last)
        for row, tokens, count in zip(rows, last.tokens, last.num_emitted, strict=True):
            row.extend(tokens[:count])
        if logprobs is not None and last.logprobs is not None:
            for row, values, count in zip(logprobs, last.logprobs, last.num_emitted, strict=True):
                row.extend(values[:count])
        if on_round:
            on_round(last)
    texts = [np.array(row, np.int32) for row in rows]
    return Generation(texts, stats, None if logprobs is None else [np.array(row, np.float32) for row in logprobs])


def _check_model(name: str, model: object, kind: type[Model]) -> Model:
    if not isinstance(model, kind):
        raise ValueError(f"{name}: expected a {kind.__name__} (decoding.load_pair() returns one), got {model!r:.80}")
    return model


def _lengths(draft_length: object, loop: object) -> DraftLengths | None:
    """None for a fixed length.  Errors: ValueError for a word other than "auto", and with another loop than "streamed"."""
    if isinstance(draft_length, str) and draft_length != AUTO:
        raise ValueError(f'draft_length: expected a whole number or "{AUTO}", got {draft_length!r:.80}')
    lengths = DraftLengths() if draft_length == AUTO else draft_length
    if not isinstance(lengths, DraftLengths):
        return None
    if loop != "streamed":
        raise ValueError(
            f'draft_length: "{AUTO}" changes it between calls and needs loop="streamed", got loop={loop!r:.80}'
        )
    return lengths


def _check_loop(loop: object, threads: object, target: Gemma4) -> None:
    if loop not in LOOPS:
        raise ValueError(f"loop: expected {', '.join(map(repr, LOOPS))}, got {loop!r:.80}")
    fast.check_threads(threads, loop, target)
