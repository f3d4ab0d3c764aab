"""The cache: its one rule, rollback, what it refuses, and that nothing outside the committed set is ever read.

Loops compute the committed set here, from the rule alone, and not `slot_positions`.
"""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma4
from gemma4 import PRESETS, KVCache, LayerKV, init_cache, truncate
from gemma4 import cache as cache_module
from gemma4.cache import resize, slot_positions, write
from gemma4.config import FULL, SLIDING
from tests.models import TINY, WINDOW, random_target, random_tokens

CONFIG = TINY["E2B"]
LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3)  # one row of a batch each
VERIFY = 5  # tokens in a verify
CAPACITY = 40
POISONS = (np.nan, 3e38, -3e38)


@pytest.fixture(scope="module")
def target():
    return random_target(CONFIG)


def empty_cache() -> KVCache:
    return init_cache(CONFIG, len(LENGTHS), CAPACITY, chunk=VERIFY)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_examples_of_the_docstrings():
    results = doctest.testmod(cache_module)
    assert results.attempted >= 2 and not results.failed


@pytest.mark.parametrize("capacity", [1, 4, 13])
def test_slot_positions_against_a_simulation(capacity):
    slots = [None] * capacity
    for position in range(3 * capacity):
        slots[position % capacity] = position
        held = np.asarray(slot_positions(jnp.asarray([position]), capacity))[0].tolist()
        assert [p if p >= 0 else None for p in held] == slots


def test_write_touches_only_its_slots():
    before = np.random.default_rng(0).normal(size=(2, 3, 7, 4)).astype(np.float32)
    key, value = (np.random.default_rng(i).normal(size=(2, 5, 3, 4)).astype(np.float32) for i in (1, 2))
    starts = [4, 16]  # the first wraps around
    kv = write(
        LayerKV(jnp.asarray(before), jnp.asarray(-before)), jnp.asarray(key), jnp.asarray(value), jnp.asarray(starts)
    )
    expected_key, expected_value = before.copy(), -before
    for row, start in enumerate(starts):
        for t in range(5):
            expected_key[row, :, (start + t) % 7] = key[row, t]
            expected_value[row, :, (start + t) % 7] = value[row, t]
    np.testing.assert_array_equal(np.asarray(kv.key), expected_key)
    np.testing.assert_array_equal(np.asarray(kv.value), expected_value)


def test_init_cache_sizes():
    config = PRESETS["E2B"]
    cache = jax.eval_shape(lambda: init_cache(config, batch=3, capacity=4096, chunk=16, dtype=jnp.bfloat16))
    owners = [i for i, kv in enumerate(cache.layers) if kv is not None]
    assert owners == list(range(15)), "the 20 shared layers own nothing"
    for i in owners:
        slots, head_dim = (512 + 16, 256) if config.layer_types[i] == SLIDING else (4096, 512)
        assert cache.layers[i].key.shape == cache.layers[i].value.shape == (3, 1, slots, head_dim)
        assert cache.layers[i].key.dtype == jnp.bfloat16
    assert cache.length.shape == (3,)


def test_a_ring_is_never_larger_than_the_sequence():
    cache = jax.eval_shape(lambda: init_cache(PRESETS["12B"], capacity=100))
    assert {kv.capacity for kv in cache.layers} == {100}


def test_buffers_are_separate_so_that_each_may_be_donated():
    leaves = jax.tree.leaves(init_cache(CONFIG))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize("arguments", [{"batch": 0}, {"capacity": 0}, {"chunk": 0}])
def test_init_cache_refuses_empty_sizes(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        init_cache(CONFIG, **arguments)


# -- nothing outside the committed set is read -------------------------------------------------------------------------


def poisoned(cache: KVCache, poison: float | None) -> KVCache:
    """Fill all slots with `poison` but those of the positions that a query at `length` or later may see."""
    if poison is None:
        return cache
    layers = []
    for layer, kv in enumerate(cache.layers):
        if kv is not None:
            keep = np.zeros((cache.length.shape[0], kv.capacity), bool)
            for row, length in enumerate(np.asarray(cache.length).tolist()):
                oldest = 0 if CONFIG.layer_types[layer] == FULL else max(0, length - WINDOW + 1)
                keep[row, [position % kv.capacity for position in range(oldest, length)]] = True
            kv = LayerKV(*(jnp.where(keep[:, None, :, None], buffer, poison) for buffer in kv))
        layers.append(kv)
    return cache._replace(layers=tuple(layers))


def prefill(step, cache: KVCache, chunk: int) -> KVCache:
    """Prompts of the four lengths in chunks, by `step(tokens, cache, new_length)`.

    A row whose prompt has ended writes pads with every further chunk, and each time they are rolled back.
    """
    prompts = random_tokens(len(LENGTHS), max(LENGTHS) + chunk)
    for end in range(chunk, max(LENGTHS) + chunk, chunk):
        starts = np.asarray(cache.length)
        tokens = np.stack([prompts[row, start : start + chunk] for row, start in enumerate(starts)])
        cache = step(tokens, cache, np.minimum(LENGTHS, end))
    assert cache.length.tolist() == list(LENGTHS)
    return cache


def run(target, chunk: int, poison: float | None) -> list[np.ndarray]:
    """A prefill, a verify of which each row keeps another number of tokens, three single tokens; poison before every forward.

    Returns the logits of the tokens that were kept.
    """
    batch, kept = len(LENGTHS), []

    def step(tokens, cache, new_length):
        out = gemma4.forward(target, tokens, poisoned(cache, poison))
        for row, (start, end) in enumerate(zip(cache.length.tolist(), new_length.tolist(), strict=True)):
            kept.append(np.asarray(out.logits)[row, : end - start])
        return truncate(out.cache, jnp.asarray(new_length))

    cache = prefill(step, init_cache(CONFIG, batch, CAPACITY, chunk=chunk), chunk)
    cache = step(random_tokens(batch, VERIFY, seed=1), cache, np.asarray(cache.length) + [1, 3, 5, 2])
    for i in range(3):
        cache = step(random_tokens(batch, 1, seed=2 + i), cache, np.asarray(cache.length) + 1)
    return kept


@pytest.mark.parametrize("chunk", [VERIFY, 2 * WINDOW + 3], ids=["chunk within the window", "chunk past the window"])
def test_poison(target, chunk):
    clean = run(target, chunk, None)
    assert all(np.isfinite(logits).all() for logits in clean)
    for poison in POISONS:
        for expected, got in zip(clean, run(target, chunk, poison), strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=f"poison {poison} was read")


def test_poison_reaches_every_other_slot():
    """The test above needs this: it would pass if nothing were poisoned."""
    cache = init_cache(CONFIG, batch=1, capacity=40, chunk=VERIFY)._replace(length=jnp.asarray([11]))
    sliding, full = (poisoned(cache, np.nan).layers[CONFIG.donors[kind]] for kind in (SLIDING, FULL))
    clean = lambda kv: np.flatnonzero(~np.isnan(np.asarray(kv.key)).any((0, 1, 3))).tolist()
    assert sliding.capacity == WINDOW + VERIFY == 13
    assert clean(sliding) == [4, 5, 6, 7, 8, 9, 10], "the query at 11 sees 4..11"
    assert clean(full) == list(range(11))


@pytest.mark.parametrize(
    ("capacity", "chunk"),
    [(CAPACITY, VERIFY), (2 * CAPACITY, VERIFY), (2 * CAPACITY, 3 * WINDOW), (30, WINDOW), (30, 30)],
)
def test_a_cache_of_another_size_holds_the_same_tokens(target, capacity, chunk):
    """Logits of the next tokens within 2e-5 of the largest, at each of the lengths, from rings of window + 3 slots or of all
    slots; nothing is read but what a query may see."""
    for before in (3, CAPACITY):

        def step(tokens, cache, length):
            return truncate(gemma4.forward(target, tokens, cache).cache, jnp.asarray(length))

        cache = prefill(step, init_cache(CONFIG, len(LENGTHS), CAPACITY, chunk=before), 3)
        resized = resize(cache, CONFIG, capacity, chunk=chunk)
        like = init_cache(CONFIG, len(LENGTHS), capacity, chunk=chunk)
        assert jax.tree.map(jnp.shape, resized) == jax.tree.map(jnp.shape, like)
        if (capacity, chunk) == (CAPACITY, before):
            jax.tree.map(np.testing.assert_array_equal, resized, cache)
        expected, cache_after = gemma4.forward(target, random_tokens(len(LENGTHS), 3, seed=5), cache)[::2]
        for poison in (None, np.nan):
            out = gemma4.forward(target, random_tokens(len(LENGTHS), 3, seed=5), poisoned(resized, poison))
            np.testing.assert_allclose(out.logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
            assert out.cache.length.tolist() == cache_after.length.tolist()


@pytest.mark.parametrize("rejected_blocks", [1, 3])
@pytest.mark.parametrize("then", [1, VERIFY])
def test_rollback_leaves_no_trace(target, rejected_blocks, then):
    """Bit for bit, at each of the lengths.  With one token after it, slots that the rejected block wrote stay as they are."""

    def step(tokens, cache, length):
        return truncate(gemma4.forward(target, tokens, cache).cache, jnp.asarray(length))

    cache = drafted = prefill(step, empty_cache(), VERIFY)
    for i in range(rejected_blocks):
        drafted = step(random_tokens(len(LENGTHS), VERIFY, seed=9 + i), drafted, cache.length)
    after, never = (gemma4.forward(target, random_tokens(len(LENGTHS), then, seed=5), c) for c in (drafted, cache))
    np.testing.assert_array_equal(np.asarray(after.logits), np.asarray(never.logits))
    np.testing.assert_array_equal(np.asarray(after.hidden), np.asarray(never.hidden))


def test_shared_layers_write_nothing(target):
    cache = gemma4.forward(target, random_tokens(len(LENGTHS), VERIFY), empty_cache()).cache
    assert [kv is None for kv in cache.layers] == [source != i for i, source in enumerate(CONFIG.kv_source)]


# -- writes that do not fit are refused ---------------------------------------------------------------------------------


def test_overfull_writes_are_refused(target):
    cache = init_cache(CONFIG, batch=2, capacity=12, chunk=4)
    with pytest.raises(ValueError, match=r"5 tokens in one forward.*at most 4.*chunk=5"):
        gemma4.forward(target, random_tokens(2, 5), init_cache(CONFIG, batch=2, capacity=40, chunk=4))
    nearly_full = truncate(cache, jnp.asarray([3, 9]))
    with pytest.raises(ValueError, match=r"holds 12 tokens, but 9 are in it and 4 more.*capacity=13"):
        gemma4.forward(target, random_tokens(2, 4), nearly_full)
    with pytest.raises(ValueError, match="batch 2.*batch 1"):
        gemma4.forward(target, random_tokens(1, 1), cache)


def test_a_cache_may_be_filled_to_the_last_slot(target):
    cache, tokens = empty_cache(), random_tokens(len(LENGTHS), VERIFY)
    for _ in range(CAPACITY // VERIFY):
        cache = gemma4.forward(target, tokens, cache).cache
    assert set(cache.length.tolist()) == {CAPACITY}
    with pytest.raises(ValueError, match="holds 40 tokens, but 40 are in it and 5 more"):
        gemma4.forward(target, tokens, cache)


def test_a_concrete_cache_within_jit(target):
    """Its length is not a tracer, although what is computed from it is; the check still runs."""
    cache, tokens = empty_cache(), random_tokens(len(LENGTHS), VERIFY)
    logits = jax.jit(lambda tokens: gemma4.forward(target, tokens, cache).logits)(tokens)
    outside = np.asarray(gemma4.forward(target, tokens, cache).logits)
    np.testing.assert_allclose(logits, outside, rtol=0, atol=2e-5 * np.abs(outside).max())
    full = truncate(cache, jnp.full(len(LENGTHS), CAPACITY))
    with pytest.raises(ValueError, match="holds 40 tokens, but 40 are in it and 5 more"):
        jax.jit(lambda tokens: gemma4.forward(target, tokens, full).logits)(tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 0), int), "not empty"),
        (np.zeros(3, int), r"\[batch, time\]"),
        (np.zeros((1, 2)), "expected integers"),
        (np.array([[0, CONFIG.vocab_size]]), "token id 64 is out of range.*0..63"),
        (np.array([[-1, 0]]), "token id -1"),
    ],
)
def test_bad_tokens_are_refused(target, tokens, message):
    with pytest.raises(ValueError, match=message):
        gemma4.forward(target, tokens)


@pytest.mark.parametrize("layout", ["E2B", "12B"])
def test_a_cache_of_another_dtype(layout):
    """A bfloat16 model computes in bfloat16 over a float32 cache, whose keys and values are rounded less."""
    target = random_target(TINY[layout], dtype=jnp.bfloat16)
    dtypes = {}

    def tap(name, value):
        dtypes[name] = value.dtype
        return value

    cache = gemma4.init_cache(target.config, 1, 8)
    jax.eval_shape(lambda: gemma4.forward(target, [[2, 5, 7]], cache, tap=tap))
    assert dtypes["layers.0.attention"] == dtypes["layers.0.mlp"] == dtypes["hidden"] == jnp.bfloat16
    assert dtypes["logits"] == jnp.float32
