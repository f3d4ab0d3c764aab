"""Draft steps of a ragged batch, after a target's cache that wraps around its window: what the drafter's tests compare."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import drafter
import gemma4
from drafter import Drafter, SharedCache, share_cache
from gemma4 import Gemma4, init_cache
from gemma4.cache import LayerKV
from gemma4.config import SLIDING
from tests.models import TINY, TINY_DRAFTERS, VOCAB, WINDOW, random_drafter, random_target, random_tokens

LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3)  # committed tokens, one of these a row
STEPS = 4
CHUNK = 4  # rings of 13 slots, in which the longest row wraps
TOLERANCE = 2e-5  # of the largest magnitude of what is compared; for every quantity in this file


class Case(NamedTuple):
    target: Gemma4
    draft_model: Drafter
    shared: SharedCache  # a row for each of LENGTHS; the longest wraps around its ring
    hidden: np.ndarray  # [row, d]: the target's, at the last committed token
    prompts: np.ndarray
    drafted: np.ndarray  # [row, STEPS]: the input token of each step

    def embedding(self, step: int) -> jnp.ndarray:
        return self.target.embed_tokens(jnp.asarray(self.drafted[:, step]))

    def row(self, index: int) -> "Case":
        """The same for one row alone."""
        alone = slice(index, index + 1)
        donors = {kind: LayerKV(kv.key[alone], kv.value[alone]) for kind, kv in self.shared.donors.items()}
        shared = SharedCache(donors, self.shared.length[alone])
        return self._replace(shared=shared, hidden=self.hidden[alone], drafted=self.drafted[alone])

    def kv_of(self, row: int) -> dict[str, list[np.ndarray]]:
        """Keys and values of one row by position, [k, n, h]; zeros at positions that a ring no longer holds."""
        n, out = LENGTHS[row], {}
        for kind, kv in self.shared.donors.items():
            held = np.arange(max(0, n - WINDOW - 1) if kind == SLIDING else 0, n)
            out[kind] = [np.zeros((x.shape[1], n, x.shape[3]), np.float32) for x in kv]
            for by_position, x in zip(out[kind], kv, strict=True):
                by_position[:, held] = np.asarray(x)[row][:, held % kv.capacity]
        return out


@functools.cache
def case(layout: str, dtype: DTypeLike = jnp.float32) -> Case:
    target, draft_model = (
        random_target(TINY[layout], 3, dtype),
        random_drafter(TINY_DRAFTERS[layout], seed=4, dtype=dtype),
    )
    batch, longest, lengths = len(LENGTHS), -(-max(LENGTHS) // CHUNK) * CHUNK, np.array(LENGTHS)
    prompts, drafted = random_tokens(batch, longest), random_tokens(batch, STEPS)
    cache, hidden = init_cache(target.config, batch, longest, chunk=CHUNK + 1, dtype=dtype), []
    for start in range(0, longest, CHUNK):
        out = gemma4.forward(target, prompts[:, start : start + CHUNK], cache)
        cache = gemma4.truncate(out.cache, jnp.clip(lengths, cache.length, cache.length + CHUNK))
        hidden.append(out.hidden)
    hidden = np.concatenate(hidden, axis=1)[np.arange(batch), lengths - 1]
    return Case(target, draft_model, share_cache(cache, target.config), hidden, prompts, drafted)


@jax.jit
def tapped_step(draft_model: Drafter, embedding, hidden, shared: SharedCache):
    """`drafter.forward`, and the values at its taps."""
    taps = {}
    record = lambda name, value: taps.setdefault(name, value)
    return *drafter.forward(draft_model, embedding, hidden, shared, tap=record), taps


def our_steps(case: Case) -> list[tuple[np.ndarray, np.ndarray, dict]]:
    """(logits, chained hidden, taps) of each step, all rows at once."""
    hidden, out = jnp.asarray(case.hidden), []
    for step in range(STEPS):
        logits, hidden, taps = tapped_step(case.draft_model, case.embedding(step), hidden, case.shared)
        out.append((np.asarray(logits), np.asarray(hidden), taps))
    return out


def assert_near(ours, reference, what: str, tolerance: float = TOLERANCE) -> None:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, what
    error, limit = np.abs(ours - reference).max(), tolerance * np.abs(reference).max()
    assert error <= limit, f"{what}: {error:.2e} apart, at most {limit:.2e} expected"


def assert_same_logits(ours: np.ndarray, reference: np.ndarray, is_clustered: bool, what: str) -> None:
    """Dense: all logits.  Clustered: the same tokens are scored, and their logits; `reference` has a fill elsewhere."""
    if is_clustered:
        scored = reference > reference.min()
        assert 0 < scored.sum() < VOCAB
        np.testing.assert_array_equal(np.isfinite(ours), scored, err_msg=f"{what}: tokens scored")
        ours, reference = ours[scored], reference[scored]
    assert_near(ours, reference, f"{what}: logits")
