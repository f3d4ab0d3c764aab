"""Stage 0: read the prompts into the cache, and draw the first token.

A prefill is a verify that accepts everything: chunks of tokens are written, and each row keeps as many as its prompt has.
Prompts of different lengths are padded on the right; a pad is a draft that is always rejected.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from decoding.checks import (
    Prompts,
    check_draft_length,
    check_eos_ids,
    check_key,
    check_max_new_tokens,
    check_prompts,
    check_sampling,
)
from decoding.emit import count_emitted
from decoding.rollback import rollback
from decoding.sampling import Sampling, draw
from decoding.speculative import LONGEST_DRAFT
from decoding.state import DecodeState, Round
from gemma4 import Gemma4, KVCache, init_cache
from gemma4.sharding import mesh_of

LONGEST_CHUNK = 512


def prefill(
    target: Gemma4,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    draft_length: int = 4,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    eos_ids: Sequence[int] = (),
) -> DecodeState:
    """The state before the first round: every prompt in the cache, one token of the target's emitted.

    The cache has room for prompts, `max_new_tokens` and a last round's rejected drafts.

    prompts:      ids of one prompt, or a batch of prompts of different lengths.
    draft_length: the most drafts a round will have; 0 for none.
    key:          `jax.random.key` (default: key 0); the state keeps what the first token leaves of it.
    eos_ids:      ids that end a row, should the first token be one of them; none unless given.
    Errors:       ValueError for a bad setting; for a prompt that is empty, that holds other ids than the target's, or that
                  with `max_new_tokens` goes past the context; and if what the target makes of it is not finite.
    """
    max_new_tokens = check_max_new_tokens(max_new_tokens)
    prompts = check_prompts(target, prompts, max_new_tokens)
    draft_length = check_draft_length(draft_length, least=0)
    sampling, key, eos_ids = check_sampling(sampling), check_key(key), check_eos_ids(eos_ids)
    longest = max(map(len, prompts))
    chunk = min(LONGEST_CHUNK, max(16, _power_of_two(longest)))
    num_chunks = -(-longest // chunk)
    # One slot more than a forward writes: a row whose prompt is over still gets a chunk of pads, which must not reach the
    # oldest row that a drafter sees (window + 1 of them in the transformers convention, one more than the target).
    room = max(chunk, draft_length + 1) + 1
    # Behind the longest prompt, what a last chunk writes of pads, or what is emitted and the last round's drafts.
    capacity = _round_up(longest + max(chunk, max_new_tokens + LONGEST_DRAFT), 128)
    dtype, mesh = target.embed_tokens.weight.dtype, mesh_of(target.embed_tokens.weight[...])
    cache = init_cache(target.config, len(prompts), capacity, chunk=room, dtype=dtype, mesh=mesh)

    padded = np.zeros((len(prompts), num_chunks * chunk), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    lengths = jnp.array([len(prompt) for prompt in prompts], jnp.int32)
    hidden = jnp.zeros((len(prompts), target.config.hidden_size), dtype)
    for start in range(0, num_chunks * chunk, chunk):
        hidden, cache = _read_chunk(target, cache, jnp.asarray(padded[:, start : start + chunk]), lengths, hidden)
    if not isinstance(hidden, jax.core.Tracer) and not jnp.isfinite(hidden).all():
        raise ValueError(
            f"what the target makes of the prompt is not finite in {hidden.dtype}: float16 overflows, so that you should "
            "load it as float32 or bfloat16; in these, look for damaged weights"
        )
    return _first_token(target, cache, hidden, key, max_new_tokens, draft_length, sampling, eos_ids)


@functools.partial(jax.jit, donate_argnames="cache")
def _read_chunk(
    target: Gemma4, cache: KVCache, tokens: Int[Array, "b t"], lengths: Int[Array, " b"], hidden: Float[Array, "b d"]
) -> tuple[Float[Array, "b d"], KVCache]:
    """Write one chunk, keep what belongs to the prompts, and take the hidden row of each prompt that ends in it."""
    before = cache.length
    kept = jnp.clip(lengths - before, 0, tokens.shape[1])
    last, cache = target(tokens, cache, only=jnp.maximum(kept - 1, 0))
    return jnp.where(kept[:, None] > 0, last[:, 0], hidden), rollback(cache, before, kept)


@functools.partial(jax.jit, static_argnames=("draft_length", "sampling", "eos_ids"), donate_argnames="cache")
def _first_token(target, cache, hidden, key, max_new_tokens, draft_length, sampling, eos_ids) -> DecodeState:
    key, draw_key = jax.random.split(key)
    zeros = jnp.zeros(hidden.shape[0], jnp.int32)
    token = draw(target.logits(hidden), sampling, jax.random.uniform(draw_key, zeros.shape))
    # The prefill as a round that drafted nothing; shaped like later rounds, so that these compile once.
    tokens = jnp.pad(token[:, None], ((0, 0), (0, draft_length)))
    budget = zeros + max_new_tokens
    num_emitted, done = count_emitted(tokens, zeros + 1, budget, zeros.astype(bool), eos_ids)
    last = Round(tokens[:, 1:], zeros, tokens, num_emitted)
    return DecodeState(cache, token, hidden, key, num_emitted, budget, done, last)


# Few different shapes mean few compilations, of rounds too, whose cache has the size that the prompt asks for.


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
