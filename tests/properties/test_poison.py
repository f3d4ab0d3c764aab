"""No mask shows a slot that is not committed: filling all of them with NaN, or with large numbers, changes nothing.

Zeros would not do as poison: a zero key still adds e^0 to a softmax.  Slots of sliding layers that hold committed
tokens too old for any query are filled, too, so that these tests also bound the windows from above.  The plain rounds run.
"""

import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import decoding.stages.prefill
import gemma4
from decoding import DecodeState, Options, Sampling
from drafter import Drafter, share_cache
from drafter.config import CONVENTIONS, TRANSFORMERS
from gemma4.cache import KVCache, LayerKV, slot_positions
from tests.models import SMALL, small_drafter, small_target
from tests.models import SMALL_CONTEXT as CONTEXT
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import SMALL_WINDOW as WINDOW
from tests.scripted import script_of, scripted_step

LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 2)
GAMMA, ROUNDS, NEW_TOKENS = 3, 8, 30
OPTIONS = Options(GAMMA)
POISONS = {"NaN": lambda sign: np.nan, "large": lambda sign: 1e9 * sign}


class Case(NamedTuple):
    target: gemma4.Gemma4
    prompts: list[list[int]]
    texts: list[list[int]]
    script: np.ndarray  # partly right: rounds accept 0, 1, 2 or 3 drafts, and each row another number


@functools.cache
def case() -> Case:
    target, rng = small_target(), np.random.default_rng(5)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]
    out = decoding.generate_autoregressive(target, prompts, max_new_tokens=NEW_TOKENS, loop="plain")
    texts = [text.tolist() for text in out.tokens]
    is_wrong = rng.random((len(prompts), NEW_TOKENS)) < 0.35

    def script(row: int) -> np.ndarray:
        return script_of([prompts[row]], [texts[row]], lambda i, token: (token + is_wrong[row, i]) % VOCAB)

    return Case(target, prompts, texts, np.concatenate([script(row) for row in range(len(prompts))]))


def fresh_state() -> DecodeState:
    """The state after a prefill in chunks of 8: the ring (15 slots) wraps in it, and short rows get chunks of pads."""
    this = case()
    with mock.patch.object(decoding.stages.prefill, "MAX_CHUNK", 8):
        state = decoding.prefill(this.target, this.prompts, OPTIONS, max_new_tokens=NEW_TOKENS)
    assert state.cache.layers[0].capacity < max(LENGTHS)
    return state


def poisoned(state: DecodeState, poison, convention: str) -> DecodeState:
    """Every slot whose position is not committed, or too old for any query, is filled, keys and values."""
    oldest_visible = {True: WINDOW + 1 if convention == TRANSFORMERS else WINDOW, False: CONTEXT}  # by is_sliding
    layers, last = [], state.cache.length - 1
    for layer, kv in enumerate(state.cache.layers):
        positions = slot_positions(last, kv.capacity)
        is_visible = (positions >= 0) & (positions > last[:, None] - oldest_visible[SMALL.is_sliding(layer)])
        assert not is_visible.all(axis=1).any()
        sign = np.where(np.random.default_rng(layer).random(kv.key.shape) < 0.5, -1, 1)
        layers.append(LayerKV(*(jnp.where(is_visible[:, None, :, None], x, poison(sign)) for x in kv)))
    return state._replace(cache=KVCache(tuple(layers), state.cache.length))


@jax.jit
def computed_from_the_cache(target: gemma4.Gemma4, draft_model: Drafter, state: DecodeState):
    """What a round computes from it: drafts and their probabilities, the target's logits and hidden states."""
    shared = share_cache(state.cache, target.config)
    drafting = {"draft_length": GAMMA, "sampling": Sampling(1.0)}
    drafted = decoding.draft(target, draft_model, state.token, state.hidden, shared, jax.random.key(3), **drafting)
    verified = decoding.verify(target, state.cache, state.token, drafted.tokens)
    return drafted, verified.logits, verified.hidden


def copied(state: DecodeState) -> DecodeState:
    return jax.tree.map(jnp.copy, state)


def without_kv(state: DecodeState) -> tuple:
    return state.last, state.token, state.hidden, state.emitted, state.cache.length


def assert_equal(ours, reference, what: str) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=what)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_poison_changes_nothing(convention, poison):
    """After the prefill and after each of eight rounds, in ragged rows around the window and past the ring's wrap.

    Bit for bit: the drafts and their probabilities, the target's logits and hidden states, and the rounds that follow.  The
    poisoned state goes through the rounds, and is poisoned again after each.
    """
    this, draft_model = case(), small_drafter(convention=convention)
    script, accepted = jnp.asarray(this.script), []
    clean = fresh_state()
    dirty = poisoned(copied(clean), POISONS[poison], convention)
    for number in range(ROUNDS):
        what = f"before round {number + 1}, lengths {clean.cache.length}"
        computed = computed_from_the_cache(this.target, draft_model, clean)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(computed))
        assert_equal(computed_from_the_cache(this.target, draft_model, dirty), computed, what)
        clean = scripted_step(this.target, draft_model, script, clean, OPTIONS)
        dirty = scripted_step(this.target, draft_model, script, dirty, OPTIONS)
        assert_equal(without_kv(dirty), without_kv(clean), what)
        accepted.append(np.asarray(clean.last.num_accepted))
        dirty = poisoned(dirty, POISONS[poison], convention)
    # The rounds are worth comparing: every count occurs, and rows differ.
    assert set(np.ravel(accepted).tolist()) == set(range(GAMMA + 1))
    assert all(len(set(row)) > 1 for row in np.transpose(accepted)) and any(len(set(r)) > 1 for r in accepted)


def test_the_cache_is_that_of_a_fresh_prefill():
    """After every round, K/V of each visible position equals that of one forward over the committed tokens (2e-4).

    In every layer.  So does the hidden state for the next round (2e-3); and the newest token is the best by that hidden state.

    Largest difference by rounding (jax 0.10 and 0.12; the norm of a restless target amplifies it), and the least that any of
    fourteen deliberate mistakes showed in the first round that it reached:
        K/V           5e-6    0.8  (RoPE of the last token of a block one position off; K/V of a rejected token kept: 2)
        hidden state  6e-5    0.08 (one empty slot visible; another token of the block visible: 0.5; all others: 0.7 and more)
    The others: RoPE off in layers of one type, K/V in the slot of another position, a window off by one either way, position 0
    not visible, slots read for other positions than theirs, the hidden state of the token before.
    """
    this, draft_model = case(), small_drafter()
    tokens = [prompt + text for prompt, text in zip(this.prompts, this.texts, strict=True)]
    # What follows a text does not matter.
    whole = np.array([np.resize(row, max(LENGTHS) + NEW_TOKENS) for row in tokens])
    fresh = gemma4.forward(this.target, whole, gemma4.init_cache(SMALL, len(whole), whole.shape[1]))
    fresh, state = jax.device_get(fresh), fresh_state()
    for number in range(ROUNDS):
        on_host = jax.device_get(state._replace(key=None))
        for row, length in enumerate(on_host.cache.length):
            what = f"round {number}, row {row}"
            for layer, kv in enumerate(on_host.cache.layers):
                first = max(0, length - WINDOW - 1) if SMALL.is_sliding(layer) else 0
                positions = np.arange(first, length)
                for ring, linear in zip(kv, fresh.cache.layers[layer], strict=True):
                    ours, reference = ring[row][:, positions % kv.capacity], linear[row][:, positions]
                    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-4, err_msg=f"{what}, layer {layer}")
            np.testing.assert_allclose(
                on_host.hidden[row], fresh.hidden[row, length - 1], rtol=0, atol=2e-3, err_msg=what
            )
            assert whole[row, length] == on_host.token[row] == np.argmax(fresh.logits[row, length - 1]), what
        state = scripted_step(this.target, draft_model, jnp.asarray(this.script), state, OPTIONS)
