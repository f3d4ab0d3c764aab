"""Our own implementation behind the oracle's interface: the reference that expected tensors are recorded from.

Only the plain reference runs here: models as they are loaded, without the twins of `fast`.  Every function is looked up through
its module when it is called and, unless `jit` is asked for, runs unjitted, so that a replaced function (a mutant) takes effect.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import decoding.round
import decoding.stages.accept
import decoding.stages.accept_block
import decoding.stages.draft
import decoding.stages.emit
import decoding.stages.prefill
import decoding.stages.rollback
import decoding.stages.verify
import drafter
import drafter.model
import gemma4
import gemma4.cache
import gemma4.functional
from decoding import Options, Sampling, sampling
from decoding.oracle.engine import Decision, DraftBlock, Engine, SharedKV, Tensors
from decoding.oracle.law_check import GRID, count_until
from decoding.oracle.script import scripted
from decoding.state import DecodeState
from drafter import Drafter, SharedCache
from gemma4 import Gemma4, KVCache
from gemma4.cache import LayerKV
from gemma4.config import SLIDING


class Written(NamedTuple):
    """A cache, and its length before the last block."""

    cache: KVCache
    length_before: jax.Array


class Ours(Engine):
    """jit: compile whole forwards and rounds instead of single operations: faster, but later replacements have no effect."""

    def __init__(self, target: Gemma4, draft_model: Drafter, *, jit: bool = False):
        self.target, self.draft_model, self.config = target, draft_model, target.config
        self._jit = jax.jit if jit else _as_it_is
        self._jit_all = jax.jit if jit else by_operation  # for functions with jitted parts
        self._forward = self._jit(tapped(lambda *args, **taps: gemma4.forward(*args, **taps)))
        self._draft_step = self._jit(tapped(lambda *args, **taps: drafter.model.forward(*args, **taps)))
        self._verify = self._jit(lambda *args: decoding.stages.verify.verify(*args))
        self._prefill = _as_it_is if jit else by_operation  # `prefill` jits its own parts

    # -- the target --------------------------------------------------------------------------------------------------------

    def rotated(self, layer_type: str, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        cos_sin = gemma4.functional.rope_cos_sin(jnp.asarray(positions)[None], *self.config.rope(layer_type))
        return np.asarray(gemma4.functional.apply_rope(jnp.asarray(x)[None], cos_sin))[0]

    def forward(self, tokens: np.ndarray) -> Tensors:
        _, taps = self._forward(self.target, tokens)
        return arrays(taps)

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, room: int) -> tuple[list[Tensors], Written]:
        """As `decoding.stages.prefill` does: chunks padded on the right, pads rolled back."""
        lengths = np.array([len(prompt) for prompt in prompts])
        padded_length = -(-int(lengths.max()) // chunk) * chunk
        # One slot more than a forward writes, for the oldest position that a drafter sees (see `decoding/stages/prefill.py`).
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
            cache = decoding.stages.rollback.rollback(cache, before, jnp.asarray(kept, jnp.int32))
            for row, count in enumerate(kept):
                for name, value in taps.items():
                    rows[row][name].append(value[row, :count])
        taps_of_rows = [{name: np.concatenate(parts) for name, parts in row.items()} for row in rows]
        return taps_of_rows, Written(cache, cache.length)

    def _extend(self, cache: KVCache, tokens: np.ndarray) -> tuple[Tensors, KVCache]:
        out, taps = self._forward(self.target, tokens, cache)
        return arrays(taps), out.cache

    def verify(self, cache: Written, token: np.ndarray, drafts: np.ndarray) -> tuple[Tensors, Written]:
        before = cache.cache.length
        out = self._verify(self.target, cache.cache, jnp.asarray(token), jnp.asarray(drafts))
        return {"logits": np.asarray(out.logits), "hidden": np.asarray(out.hidden)}, Written(out.cache, before)

    def rollback(self, cache: Written, num_kept: np.ndarray) -> Written:
        rolled = decoding.stages.rollback.rollback(cache.cache, cache.length_before, jnp.asarray(num_kept, jnp.int32))
        return Written(rolled, rolled.length)

    # -- the drafter -------------------------------------------------------------------------------------------------------

    def share(self, cache: Written) -> SharedCache:
        return drafter.share_cache(cache.cache, self.config)

    def shared_kv(self, shared: SharedCache) -> SharedKV:
        lengths = np.asarray(shared.length)
        by_position = {}
        for kind, kv in shared.donors.items():
            slot_positions = np.asarray(gemma4.cache.slot_positions(shared.length - 1, kv.capacity))
            for part, buffer in zip(("key", "value"), kv, strict=True):
                out = np.zeros((*buffer.shape[:2], int(lengths.max()), buffer.shape[3]), np.float32)
                for row, positions in enumerate(slot_positions):
                    slots = np.flatnonzero(positions >= 0)
                    out[row][:, positions[slots]] = np.asarray(buffer)[row][:, slots]
                by_position[f"{kind}.{part}"] = out
        return SharedKV(by_position, lengths)

    def shared_from(self, given: SharedKV) -> SharedCache:
        """In slots, as in the cache: sliding layers get a ring of the smallest capacity that suits both conventions."""
        donors = {}
        for kind in self.config.donors:
            key, value = (given.kv[f"{kind}.{part}"] for part in ("key", "value"))
            positions = key.shape[2]
            capacity = min(self.config.sliding_window + 4, positions) if kind == SLIDING else positions
            held = np.asarray(gemma4.cache.slot_positions(jnp.asarray(given.lengths) - 1, capacity))
            # An empty slot holds the K/V of a position past the length, which nothing may read.
            source = np.where(held < 0, np.minimum(given.lengths, positions - 1)[:, None], held)[:, None, :, None]
            donors[kind] = LayerKV(*(jnp.asarray(np.take_along_axis(x, source, axis=2)) for x in (key, value)))
        return SharedCache(donors, jnp.asarray(given.lengths, jnp.int32))

    def draft_step(self, shared: SharedCache, token: np.ndarray, hidden: np.ndarray) -> Tensors:
        embedding = self.target.embed_tokens(jnp.asarray(token))
        _, taps = self._draft_step(self.draft_model, embedding, jnp.asarray(hidden), shared)
        # The step's one token has an axis of its own in all taps but the logits.
        return {name: value if name == "logits" else value[:, 0] for name, value in arrays(taps).items()}

    def draft(self, shared: SharedCache, token: np.ndarray, hidden: np.ndarray, draft_length: int) -> DraftBlock:
        run = self._jit_all(lambda *args: decoding.stages.draft.draft(*args, draft_length=draft_length))
        drafted = run(self.target, self.draft_model, jnp.asarray(token), jnp.asarray(hidden), shared, jax.random.key(0))
        return DraftBlock(np.asarray(drafted.tokens), np.asarray(drafted.probs))

    # -- acceptance --------------------------------------------------------------------------------------------------------

    def token_probs(self, logits: np.ndarray, settings: Sampling) -> np.ndarray:
        return np.asarray(sampling.token_probs(jnp.asarray(logits), settings))

    def draft_probs(self, logits: np.ndarray, settings: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """What `_draw` of `stages/draft.py` draws from, counted over the uniforms (exact to 2^-23), and what it returns."""
        count, vocabulary = logits.shape
        given_logits = GivenLogits(vocabulary)
        rows, tokens = jnp.repeat(jnp.asarray(logits), vocabulary, axis=0), np.tile(np.arange(vocabulary), count)

        def draw(uniforms: np.ndarray) -> tuple[jax.Array, jax.Array]:
            return decoding.stages.draft._draw(given_logits, rows, settings, jnp.asarray(uniforms, jnp.float32))

        at_most = count_until(lambda uniforms: np.asarray(draw(uniforms)[0]) <= tokens, tokens.shape)
        drawn = np.diff(at_most.reshape(count, vocabulary), axis=1, prepend=0) / GRID
        claimed = draw(np.zeros(len(tokens)))[1].reshape(count, vocabulary, vocabulary)[:, 0]
        return drawn.astype(np.float32), np.asarray(claimed)

    def accept(
        self, target_probs: np.ndarray, drafts: np.ndarray, draft_probs: np.ndarray, uniforms: np.ndarray
    ) -> Decision:
        return _decision(decoding.stages.accept.decide, target_probs, drafts, draft_probs, uniforms)

    def accept_block(
        self, target_probs: np.ndarray, drafts: np.ndarray, draft_probs: np.ndarray, uniforms: np.ndarray
    ) -> Decision:
        return _decision(decoding.stages.accept_block.decide_block, target_probs, drafts, draft_probs, uniforms)

    def accept_greedy(self, logits: np.ndarray, drafts: np.ndarray) -> Decision:
        return _decision(decoding.stages.accept.accept_greedy, logits, drafts)

    # -- the loop ----------------------------------------------------------------------------------------------------------

    def emitted(
        self, tokens: np.ndarray, num_tokens: np.ndarray, room: np.ndarray, eos_ids: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        done = jnp.zeros(room.shape, bool)
        num_emitted, done = decoding.stages.emit.count_emitted(
            jnp.asarray(tokens), jnp.asarray(num_tokens), jnp.asarray(room), done, eos_ids
        )
        return np.asarray(num_emitted), np.asarray(done)

    def rounds(
        self,
        prompts: Sequence[Sequence[int]],
        script: np.ndarray,
        draft_length: int,
        max_new_tokens: int,
        eos_ids: tuple[int, ...],
    ) -> list[Tensors]:
        options, out = Options(draft_length, eos_ids=eos_ids), []

        @self._jit_all
        def one_round(
            target: Gemma4, draft_model: Drafter, state: DecodeState, script: jax.Array
        ) -> tuple[DecodeState, jax.Array]:
            own = []
            by_script = scripted(decoding.round.draft, script, own.append)
            with mock.patch.object(decoding.round, "draft", by_script):
                state = decoding.round.speculative_round(target, draft_model, state, options)
            return state, own.pop().tokens

        prefill = self._prefill(lambda *args: decoding.stages.prefill.prefill(*args, max_new_tokens=max_new_tokens))
        state = prefill(self.target, prompts, options)
        while not np.asarray(state.done).all():
            state, own_drafts = one_round(self.target, self.draft_model, state, jnp.asarray(script))
            values = {
                "own_drafts": own_drafts,
                "tokens": state.last.tokens,
                "num_emitted": state.last.num_emitted,
                "hidden": state.hidden,
                "length": state.cache.length,
            }
            out.append(arrays(values))
        return out


class GivenLogits(Drafter):
    """A drafter without weights, whose head returns its input: draft from given logits in place of hidden states."""

    def __init__(self, vocab_size: int):
        self.config = SimpleNamespace(text=SimpleNamespace(vocab_size=vocab_size))

    def logits(self, normed: jax.Array) -> jax.Array:
        return normed

    def argmax(self, normed: jax.Array) -> jax.Array:
        return gemma4.functional.argmax(normed)


def tapped(function: Callable) -> Callable:
    """(*args) -> the result of function(*args, tap=...), and the tensors that it passed to the tap, in that order."""

    def run(*args: Any) -> tuple[Any, dict[str, jax.Array]]:
        taps = collections.OrderedDict()  # jit would return a dict in the order of its names

        def tap(name: str, value: jax.Array) -> jax.Array:
            taps[name] = value
            return value

        return function(*args, tap=tap), taps

    return run


def arrays(values: Mapping[str, jax.Array]) -> Tensors:
    return {name: np.asarray(value) for name, value in values.items()}


def by_operation(function: Callable) -> Callable:
    """The function operation by operation, its jitted parts too: code compiled earlier would hide a replacement."""

    def run(*args: Any) -> Any:
        with jax.disable_jit():
            return function(*args)

    return run


def _as_it_is(function: Callable) -> Callable:
    return function


def _decision(decide: Callable, *given: np.ndarray) -> Decision:
    return Decision(*map(np.asarray, decide(*map(jnp.asarray, given))))


def load(target_dir: Path, drafter_dir: Path, convention: str, *, jit: bool = True) -> Ours:
    """An adapter's entry: models from checkpoints in Hugging Face layout."""
    engine = Ours(gemma4.load(target_dir), drafter.load(drafter_dir), jit=jit)
    found = engine.draft_model.config.convention
    if found != convention:
        raise ValueError(f"{drafter_dir}: expected a drafter of the convention {convention!r}, got {found!r}")
    return engine
