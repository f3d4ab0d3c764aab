"""Our own implementation behind the oracle's interface: the reference that expected tensors are recorded from.

Every function of the reference is looked up through its module when it is called and, unless `jit` is asked for, runs
unjitted, so whoever replaces one (a mutant) sees the replacement recorded.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import drafter
import gemma4
from decoding import Options, Sampling
from decoding.oracle.engine import Decision, DraftBlock, Engine, SharedRows, Tensors
from decoding.oracle.law_check import GRID, count_until
from decoding.oracle.modules import (
    accept,
    accept_block,
    draft,
    drafter_model,
    functional,
    generate,
    sampling,
    speculative,
    verify,
)
from decoding.oracle.modules import rollback as rollback_module
from decoding.oracle.script import scripted
from decoding.stages.emit import count_emitted
from drafter import Drafter, SharedCache
from gemma4 import Gemma4, KVCache
from gemma4.cache import LayerKV
from gemma4.config import SLIDING


class Written(NamedTuple):
    """A cache, and how long it was before its last block."""

    cache: KVCache
    length_before: jax.Array


class Ours(Engine):
    """jit: compile whole forwards and rounds, not operation by operation: quicker, but blind to what is replaced later."""

    def __init__(self, target: Gemma4, draft_model: Drafter, *, jit: bool = False):
        self.target, self.draft_model, self.config = target, draft_model, target.config
        self.is_jitted, self._jit = jit, jax.jit if jit else lambda function: function
        self._jit_outright = jax.jit if jit else by_operation  # of what holds compiled parts
        self._forward = self._jit(tapped(lambda *args, **taps: gemma4.forward(*args, **taps)))
        self._draft_step = self._jit(tapped(lambda *args, **taps: drafter_model.forward(*args, **taps)))
        self._verify = self._jit(lambda *args: verify.verify(*args))

    # -- the target --------------------------------------------------------------------------------------------------------

    def rotated(self, layer_type: str, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        angles = functional.rope_angles(jnp.asarray(positions)[None], *self.config.rope(layer_type))
        return np.asarray(functional.rotate(jnp.asarray(x)[None], angles))[0]

    def forward(self, tokens: np.ndarray) -> Tensors:
        _, taps = self._forward(self.target, tokens)
        return arrays(taps)

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, room: int) -> tuple[list[Tensors], Written]:
        """As `decoding.stages.prefill` does: chunks padded on the right, pads rolled back."""
        lengths = np.array([len(prompt) for prompt in prompts])
        padded_length = -(-int(lengths.max()) // chunk) * chunk
        # One slot more than a forward writes, for the oldest row that a drafter sees (see `decoding/prefill.py`).
        slots = max(chunk, room) + 1
        cache = gemma4.init_cache(self.config, len(prompts), padded_length + 8 * room, chunk=slots)
        padded = np.zeros((len(prompts), padded_length), np.int32)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        rows = [collections.defaultdict(list) for _ in prompts]
        for start in range(0, padded_length, chunk):
            before = cache.length
            taps, cache = self._extend(cache, padded[:, start : start + chunk])
            kept = np.clip(lengths - np.asarray(before), 0, chunk)
            cache = rollback_module.rollback(cache, before, jnp.asarray(kept, jnp.int32))
            for row, count in enumerate(kept):
                for name, value in taps.items():
                    rows[row][name].append(value[row, :count])
        taken = [{name: np.concatenate(parts) for name, parts in row.items()} for row in rows]
        return taken, Written(cache, cache.length)

    def _extend(self, cache: KVCache, tokens: np.ndarray) -> tuple[Tensors, KVCache]:
        out, taps = self._forward(self.target, tokens, cache)
        return arrays(taps), out.cache

    def verify(self, cache: Written, token: np.ndarray, drafts: np.ndarray) -> tuple[Tensors, Written]:
        before = cache.cache.length
        out = self._verify(self.target, cache.cache, jnp.asarray(token), jnp.asarray(drafts))
        return {"logits": np.asarray(out.logits), "hidden": np.asarray(out.hidden)}, Written(out.cache, before)

    def rollback(self, cache: Written, num_kept: np.ndarray) -> Written:
        rolled = rollback_module.rollback(cache.cache, cache.length_before, jnp.asarray(num_kept, jnp.int32))
        return Written(rolled, rolled.length)

    # -- the drafter -------------------------------------------------------------------------------------------------------

    def share(self, cache: Written) -> SharedCache:
        return drafter.share_cache(cache.cache, self.config)

    def shared_rows(self, shared: SharedCache) -> SharedRows:
        lengths = np.asarray(shared.length)
        rows = {}
        for kind, kv in shared.donors.items():
            held = np.asarray(gemma4.cache.slot_positions(shared.length - 1, kv.capacity))
            for part, buffer in zip(("key", "value"), kv, strict=True):
                out = np.zeros((*buffer.shape[:2], int(lengths.max()), buffer.shape[3]), np.float32)
                for row, positions in enumerate(held):
                    slots = np.flatnonzero(positions >= 0)
                    out[row][:, positions[slots]] = np.asarray(buffer)[row][:, slots]
                rows[f"{kind}.{part}"] = out
        return SharedRows(rows, lengths)

    def shared_from(self, rows: SharedRows) -> SharedCache:
        """In slots, as the cache keeps them: a ring for sliding layers, of the smallest capacity that two conventions need."""
        donors = {}
        for kind in self.config.donors:
            key, value = (rows.rows[f"{kind}.{part}"] for part in ("key", "value"))
            positions = key.shape[2]
            capacity = min(self.config.sliding_window + 4, positions) if kind == SLIDING else positions
            held = np.asarray(gemma4.cache.slot_positions(jnp.asarray(rows.lengths) - 1, capacity))
            # An empty slot holds a row past the length, which nothing may read.
            source = np.where(held < 0, np.minimum(rows.lengths, positions - 1)[:, None], held)
            take = lambda x, source=source: jnp.asarray(np.take_along_axis(x, source[:, None, :, None], axis=2))
            donors[kind] = LayerKV(take(key), take(value))
        return SharedCache(donors, jnp.asarray(rows.lengths, jnp.int32))

    def draft_step(self, shared: SharedCache, token: np.ndarray, hidden: np.ndarray) -> Tensors:
        embedding = self.target.embed_tokens(jnp.asarray(token))
        _, taps = self._draft_step(self.draft_model, embedding, jnp.asarray(hidden), shared)
        # The step's one token has an axis of its own in all taps but the logits.
        return {name: value if name == "logits" else value[:, 0] for name, value in arrays(taps).items()}

    def draft(self, shared: SharedCache, token: np.ndarray, hidden: np.ndarray, draft_length: int) -> DraftBlock:
        run = self._jit_outright(lambda *args: draft.draft(*args, draft_length=draft_length))
        given = jnp.asarray(token), jnp.asarray(hidden), shared, jax.random.key(0)
        block = run(self.target, self.draft_model, *given)
        return DraftBlock(np.asarray(block.tokens), np.asarray(block.probs))

    # -- acceptance --------------------------------------------------------------------------------------------------------

    def law(self, logits: np.ndarray, settings: Sampling) -> np.ndarray:
        return np.asarray(sampling.law(jnp.asarray(logits), settings))

    def draft_laws(self, logits: np.ndarray, settings: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """What `draft._draw` says it draws from, and what it does draw from: counted over the uniforms, exact to 2^-23."""
        count, vocabulary = logits.shape
        text = SimpleNamespace(vocab_size=vocabulary)
        scores_are_given = SimpleNamespace(
            logits=lambda rows: rows, argmax=functional.argmax, config=SimpleNamespace(text=text)
        )
        rows, tokens = jnp.repeat(jnp.asarray(logits), vocabulary, axis=0), np.tile(np.arange(vocabulary), count)
        draw = lambda uniforms: draft._draw(scores_are_given, rows, settings, jnp.asarray(uniforms, jnp.float32))
        at_most = count_until(lambda uniforms: np.asarray(draw(uniforms)[0]) <= tokens, tokens.shape)
        drawn = np.diff(at_most.reshape(count, vocabulary), axis=1, prepend=0) / GRID
        told = draw(np.zeros(len(tokens)))[1].reshape(count, vocabulary, vocabulary)[:, 0]
        return np.float32(drawn), np.asarray(told)

    def accept(self, target_probs, drafts, draft_probs, uniforms) -> Decision:
        return self._decided(accept.decide, target_probs, drafts, draft_probs, uniforms)

    def accept_block(self, target_probs, drafts, draft_probs, uniforms) -> Decision:
        return self._decided(accept_block.decide_block, target_probs, drafts, draft_probs, uniforms)

    def _decided(self, decide, *given) -> Decision:
        return Decision(*map(np.asarray, decide(*map(jnp.asarray, given))))

    def accept_greedy(self, logits: np.ndarray, drafts: np.ndarray) -> Decision:
        return Decision(*map(np.asarray, accept.accept_greedy(jnp.asarray(logits), jnp.asarray(drafts))))

    # -- the loop ----------------------------------------------------------------------------------------------------------

    def emitted(self, tokens, num_tokens, room, eos_ids) -> tuple[np.ndarray, np.ndarray]:
        tokens, num_tokens, room = map(jnp.asarray, (tokens, num_tokens, room))
        counted = count_emitted(tokens, num_tokens, room, jnp.zeros(room.shape, bool), eos_ids)
        return tuple(map(np.asarray, counted))

    def rounds(self, prompts, script, draft_length, max_new_tokens, eos_ids) -> list[Tensors]:
        options, out = Options(draft_length, eos_ids=eos_ids), []

        @self._jit_outright
        def one_round(target, draft_model, state, script):
            seen = []
            with mock.patch.object(speculative, "draft", scripted(speculative.draft, script, seen.append)):
                state = speculative.round_of(target, draft_model, state, options)
            return state, seen.pop().tokens

        start = generate.start if self.is_jitted else by_operation(generate.start)
        state = start(self.target, prompts, max_new_tokens, options, None)
        while not np.asarray(state.done).all():
            state, own_drafts = one_round(self.target, self.draft_model, state, jnp.asarray(script))
            last = state.last
            out.append(
                arrays(
                    {
                        "own_drafts": own_drafts,
                        "tokens": last.tokens,
                        "num_emitted": last.num_emitted,
                        "hidden": state.hidden,
                        "length": state.cache.length,
                    }
                )
            )
        return out


def tapped(function: Callable) -> Callable:
    """(*args) -> what function(*args, tap=...) returns, and what it showed the tap, in that order."""

    def run(*args):
        taps = collections.OrderedDict()  # a dict would come out of jit in the order of its names

        def tap(name: str, value: jax.Array) -> jax.Array:
            taps[name] = value
            return value

        return function(*args, tap=tap), taps

    return run


def arrays(values: Mapping[str, jax.Array]) -> Tensors:
    return {name: np.asarray(value) for name, value in values.items()}


def by_operation(function: Callable) -> Callable:
    """The function operation by operation, its compiled parts too: what was compiled before would hide a replacement."""

    def run(*args):
        with jax.disable_jit():
            return function(*args)

    return run


def load(target_dir: Path, drafter_dir: Path, convention: str, *, jit: bool = True) -> Ours:
    """An adapter's entry: models from checkpoints in Hugging Face layout."""
    engine = Ours(gemma4.load(target_dir), drafter.load(drafter_dir), jit=jit)
    if engine.draft_model.config.convention != convention:
        raise ValueError(f"{drafter_dir}: config.json says {engine.drafter.config.convention!r}, not {convention!r}")
    return engine
