"""Stage 0: read the prompts into the cache, and draw the first token.

A prefill is a verify that accepts everything: chunks of tokens are written, and each row keeps as many as its prompt has.
Prompts of different lengths are padded on the right; a pad is a draft that is always rejected.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from decoding.finite import is_finite, not_finite
from decoding.options import MAX_DRAFT_LENGTH, Options, whole_number
from decoding.processors import count_tokens, process
from decoding.prompts import Prompts, unpadded, validate_key, validate_prompts
from decoding.sampling import draw_uniforms, sample, split_key, token_logprobs
from decoding.stages.emit import count_emitted
from decoding.stages.rollback import rollback
from decoding.state import DecodeState, Round
from gemma4 import Config, Gemma4, KVCache, init_cache
from gemma4.cache import resize
from gemma4.memory import check_memory
from gemma4.progress import progress
from gemma4.sharding import mesh_of

MAX_CHUNK = 512
# The longest prompt, and how many of its tokens are read at a time.  Few sizes, because each is compiled.
CHUNKS = {32: 32, 512: 128}
MIN_CAPACITY = 256


def prefill(
    target: Gemma4,
    prompt_tokens: Prompts,
    options: Options = Options(),
    *,
    max_new_tokens: int,
    key: jax.Array | None = None,
    cache_room: int | None = None,
    after: KVCache | None = None,
    attention_mask: Any = None,
) -> DecodeState:
    """The state before the first round: every prompt in the cache, one token of the target's emitted.

    The cache has room for the prompts, `cache_room` new tokens and a last round's rejected drafts.

    prompt_tokens: ids of one prompt, or a batch of prompts of different lengths.
    options:       those of the rounds that follow.
    key:           `jax.random.key` (default: key 0), split once for the first token; the state holds the rest.  Or one key for
                   each row, [b], from which that row alone draws.
    cache_room:    how many new tokens the cache holds; all `max_new_tokens` unless given.  With fewer, the caller makes the
                   cache grow (`gemma4.cache.resize`).
    after:         a cache whose tokens come before the prompts, one row each, as an earlier generation leaves it.  The newest
                   token of that generation is not in it.
    attention_mask: of an array of ids that is padded, on either side: 1 for a token, 0 for padding (`prompts.unpadded`).
    Errors:        ValueError for a prompt that is empty, that holds ids outside the target's vocabulary, or that with
                   `max_new_tokens` exceeds the context; for `after` with another number of rows, or together with
                   processors, which would not count its tokens; NotEnoughMemory for a cache that does not fit; NotFinite if
                   the target's hidden states of a prompt are not finite.
    """
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
    prompts = validate_prompts(target.config, unpadded(prompt_tokens, attention_mask), max_new_tokens)
    first_key = validate_key(key, len(prompts))
    if after is not None and options.processors:
        raise ValueError(
            "processors: they count the tokens before, and a cache given as `after` does not tell them; begin anew"
        )
    cache_room = max_new_tokens if cache_room is None else min(cache_room, max_new_tokens)
    held = np.zeros(len(prompts), np.int32) if after is None else _held(target.config, after, prompts, max_new_tokens)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    capacity, chunk = _sizes(target.config, held + lengths, int(lengths.max()), cache_room)
    ring, weight = ring_chunk(max(chunk, options.draft_length + 1)), target.embed_tokens.weight
    if after is None:
        cache = _new_cache(target, len(prompts), capacity, ring)
    else:
        cache = resize(after, target.config, capacity, chunk=ring)

    padded = _padded(prompts, chunk)
    # Put onto the device as they are: jnp would compile a program for each shape.
    hidden = jax.device_put(np.zeros((len(prompts), target.config.hidden_size), weight.dtype))
    with progress("reading the prompt", padded.shape[1], "tokens") as advance:
        for start in range(0, padded.shape[1], chunk):
            tokens, ends = jax.device_put((padded[:, start : start + chunk], held + lengths))
            hidden, cache = _read_chunk(target, cache, tokens, ends, hidden)
            advance(chunk, hidden)
    if not isinstance(hidden, Tracer) and not np.isfinite(np.asarray(hidden)).all():
        raise not_finite(target)
    counts = _count_prompts(prompts, target.config.vocab_size) if options.processors else None
    return DecodeState(cache, *_first_token(target, hidden, first_key, jnp.int32(max_new_tokens), counts, options))


def _new_cache(target: Gemma4, rows: int, capacity: int, ring: int) -> KVCache:
    """Empty, and placed like the target's weights.  Errors: NotEnoughMemory."""
    weight = target.embed_tokens.weight
    new = functools.partial(init_cache, target.config, rows, capacity, chunk=ring, dtype=weight.dtype)
    mesh = mesh_of(weight[...])
    if mesh is None:
        what = f"the KV cache of {rows} rows of {capacity} tokens"
        advice = "give fewer prompts or shorter ones, or load the pair as bfloat16"
        check_memory(what, jax.tree.leaves(jax.eval_shape(new)), advice)
    return new(mesh=mesh)


def _padded(prompts: list[list[int]], chunk: int) -> Int[np.ndarray, "b t"]:
    """Zeros behind each prompt, to a multiple of `chunk`."""
    padded = np.zeros((len(prompts), round_up(max(map(len, prompts)), chunk)), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    return padded


def _count_prompts(prompts: list[list[int]], vocabulary: int) -> Int[Array, "b v"]:
    return jnp.asarray(np.stack([np.bincount(prompt, minlength=vocabulary) for prompt in prompts]).astype(np.int32))


def _sizes(config: Config, lengths: np.ndarray, longest_prompt: int, cache_room: int) -> tuple[int, int]:
    """The capacity of a cache for texts that have these lengths after the prefill, and how many tokens to read at a time.

    Sizes are rounded up, because each new shape costs a compilation, here and in the rounds, which use this cache.
    """
    chunk = min(MAX_CHUNK, next((size for most, size in CHUNKS.items() if longest_prompt <= most), MAX_CHUNK))
    # After the longest text come the pads of its last chunk, or the new tokens and the last round's drafts.
    needed = int(lengths.max()) + max(chunk, cache_room + MAX_DRAFT_LENGTH)
    most = round_up(config.max_position_embeddings + max(chunk, MAX_DRAFT_LENGTH), MIN_CAPACITY)
    return min(max(MIN_CAPACITY, 1 << (needed - 1).bit_length()), most), chunk


def _held(config: Config, after: KVCache, prompts: list[list[int]], max_new_tokens: int) -> np.ndarray:
    """How many tokens of each row are in the cache already.

    Errors: ValueError for another number of rows, and where a text would exceed the context.
    """
    held = np.asarray(after.length)
    if len(held) != len(prompts):
        raise ValueError(f"after: expected a cache of {len(prompts)} rows, one for each prompt, got {len(held)}")
    for row, (length, prompt) in enumerate(zip(held.tolist(), prompts, strict=True)):
        if (total := length + len(prompt) + max_new_tokens) > config.max_position_embeddings:
            raise ValueError(
                f"row {row}: {length} tokens in the cache, {len(prompt)} of the prompt and {max_new_tokens} new ones are "
                f"{total}, more than this model's context of {config.max_position_embeddings}: ask for fewer, or begin anew"
            )
    return held


def ring_chunk(tokens: int) -> int:
    """The `chunk` of a cache for forwards of so many tokens: one slot more (`gemma4/cache.py`).

    A row whose prompt has ended, or that is done, still gets pads or drafts, and keeps nothing of them.  They must not reach
    the oldest position that a drafter sees: window + 1 of them in the transformers convention, one more than the target.
    """
    return tokens + 1


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@functools.partial(jax.jit, donate_argnames="cache")
def _read_chunk(
    target: Gemma4, cache: KVCache, tokens: Int[Array, "b t"], lengths: Int[Array, " b"], hidden: Float[Array, "b d"]
) -> tuple[Float[Array, "b d"], KVCache]:
    """Write one chunk and keep what belongs to the prompts.  A row that kept nothing keeps its hidden state, too; any other
    gets that of its last kept token.
    """
    before = cache.length
    kept = jnp.clip(lengths - before, 0, tokens.shape[1])
    last, cache = target.hidden_at(tokens, cache, jnp.maximum(kept - 1, 0))
    return jnp.where(kept[:, None] > 0, last, hidden), rollback(cache, before, kept)


@jax.jit
def _first_token(
    target: Gemma4,
    hidden: Float[Array, "b d"],
    key: jax.Array,
    max_new_tokens: Int[Array, ""],
    counts: Int[Array, "b v"] | None,
    options: Options,
) -> tuple[Any, ...]:
    """All fields of the state but the cache, whose size does not concern what is compiled here."""
    key, sample_key = split_key(key)
    batch = hidden.shape[0]
    logits = target.logits(hidden)
    no_tokens = jnp.zeros((batch, 0), jnp.int32)
    processed = process(logits[:, None], no_tokens, counts, options.processors)[:, 0]
    token = sample(processed, options.sampling, draw_uniforms(sample_key, (batch,)), options.kernels)

    # A round that drafted nothing.  It has the shape of later rounds, so that these compile once.
    tokens = jnp.pad(token[:, None], ((0, 0), (0, options.draft_length)))
    none_accepted, one_token = jnp.zeros(batch, jnp.int32), jnp.ones(batch, jnp.int32)
    budget, not_done = jnp.full(batch, max_new_tokens, jnp.int32), jnp.zeros(batch, bool)
    num_emitted, done = count_emitted(tokens, one_token, budget, not_done, options.eos_ids)
    this_round = Round(tokens[:, 1:], none_accepted, tokens, num_emitted)
    if options.logprobs:
        first = token_logprobs(logits[:, None], token[:, None])
        this_round = this_round._replace(logprobs=jnp.pad(first, ((0, 0), (0, options.draft_length))))
    counts = count_tokens(counts, tokens, num_emitted)
    return token, hidden, key, num_emitted, budget, done, this_round, is_finite(logits[:, None]), counts
