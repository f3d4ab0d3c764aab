"""The loop on the device yields the rounds of the host's loop: the same tokens, the same record of each round."""

import gc
import importlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding import Options, Sampling
from decoding.baseline import autoregressive_round
from decoding.fast import round_loop
from decoding.fast.jit import compiler_options, jit_flat, laid_out
from decoding.round import speculative_round
from decoding.stages.prefill import prefill
from decoding.state import Round
from gemma4.fast.memoize import memoize_by_array
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import small_drafter, small_target

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]  # the second is longer than the window


def both_ways(generate, *args, **settings) -> tuple[decoding.Generation, list[Round]]:
    """What the loop on the device gave, after comparing all of it with the host's."""
    outs, seen = [], []
    for on_device in (False, True):
        rounds: list[Round] = []
        outs.append(generate(*args, on_round=rounds.append, on_device=on_device, key=jax.random.key(5), **settings))
        seen.append(rounds)
    host, device = outs
    assert device.stats == host.stats
    for ours, theirs in zip(device.tokens, host.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(*reversed(seen), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    return device, seen[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("new_tokens", [1, 2, 21])
def test_speculative(temperature, new_tokens):
    pair, settings = (small_target(), small_drafter()), {"sampling": Sampling(temperature), "draft_length": 3}
    out, rounds = both_ways(decoding.generate, *pair, PROMPTS, max_new_tokens=new_tokens, **settings)
    assert [len(text) for text in out.tokens] == [new_tokens] * 2
    assert len(rounds) <= new_tokens and (new_tokens == 1) == (len(rounds) == 1)


@pytest.fixture
def wide_numbers():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def test_with_64_bit_numbers_allowed(wide_numbers):
    """`jax_enable_x64` widens what names no dtype; a loop's state must not change its own."""
    pair, settings = (small_target(), small_drafter()), {"max_new_tokens": 21, "draft_length": 3}
    out, _ = both_ways(decoding.generate, *pair, PROMPTS, **settings)
    alone, _ = both_ways(decoding.generate_autoregressive, pair[0], PROMPTS, max_new_tokens=21)
    assert [text.tolist() for text in out.tokens] == [text.tolist() for text in alone.tokens]
    both_ways(decoding.generate, *pair, PROMPTS, sampling=Sampling(0.9, top_k=9, top_p=0.9), **settings)


def test_rows_end_at_their_own_eos():
    """The text of each row without EOS says which token to call EOS, so that one row ends long before the other."""
    pair = small_target(), small_drafter()
    texts = decoding.generate_autoregressive(pair[0], PROMPTS, max_new_tokens=30).tokens
    first = [{int(token): place for place, token in reversed(list(enumerate(text)))} for text in texts]
    eos = max(range(VOCAB), key=lambda token: abs(first[0].get(token, 30) - first[1].get(token, 30)))
    out, _ = both_ways(decoding.generate, *pair, PROMPTS, max_new_tokens=30, eos_ids=(eos,))
    assert [len(text) for text in out.tokens] == [places.get(eos, 29) + 1 for places in first]
    assert len(out.tokens[0]) != len(out.tokens[1])


def test_autoregressive():
    out, rounds = both_ways(decoding.generate_autoregressive, small_target(), PROMPTS, max_new_tokens=9)
    assert len(rounds) == 9


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """An item for each call of a compiled step or loop."""
    made = []

    def counting(*args):
        run = jit_flat(*args)
        return lambda state: (made.append(0), run(state))[1]

    monkeypatch.setattr(round_loop, "compiled", counting)
    return made


@pytest.mark.parametrize(
    "seconds, calls_when_seen",
    [
        (1.0, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (0.01, [0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
        (1e-5, [0, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5]),
    ],
)
def test_rounds_come_as_they_end_and_the_next_are_under_way(calls, monkeypatch, seconds, calls_when_seen):
    """Each by a call of its own, or as many as pass in 25 ms, up to eight.  One call is ahead: none waits for the host.

    By a clock that each round moves.  The first round that is seen follows the prefill.
    """
    now, when_seen, when_read, read = [0.0], [], [], round_loop._read
    monkeypatch.setattr(round_loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(round_loop, "_read", lambda report: when_read.append(len(calls)) or read(report))

    def see(last):
        now[0] += seconds
        when_seen.append(len(calls))

    decoding.generate_autoregressive(small_target(), PROMPTS, max_new_tokens=12, on_round=see)
    assert when_seen == calls_when_seen and when_read == sorted(set(when_seen) - {0})
    calls.clear()
    decoding.generate_autoregressive(small_target(), PROMPTS, max_new_tokens=1)
    assert not calls, "the prefill's token was the last"


def test_on_the_device_all_rounds_are_one_call(calls):
    settings = {"max_new_tokens": 6, "on_device": True}
    decoding.generate(small_target(), small_drafter(), PROMPTS, draft_length=3, **settings)
    assert len(calls) == 1
    decoding.generate_autoregressive(small_target(), PROMPTS, **settings)
    assert len(calls) == 2


def test_settings_reach_the_rounds(monkeypatch):
    """How drafts are drawn and judged changes how fast a text comes, not its law: no text would show that it was dropped."""
    seen, module = [], importlib.import_module("decoding.generation")
    watched = lambda state, step, options, *models: (
        seen.append(options) or round_loop.rounds(state, step, options, *models)
    )
    monkeypatch.setattr(module, "rounds", watched)
    settings = {"sampling": Sampling(1.0), "draft_sampling": Sampling(0.5), "acceptance": "block", "eos_ids": (5,)}
    decoding.generate(small_target(), small_drafter(), PROMPTS, max_new_tokens=1, draft_length=3, **settings)
    assert seen == [Options(3, **settings)]


@pytest.mark.parametrize("step, gamma", [(speculative_round, 3), (autoregressive_round, 0)])
def test_a_call_after_the_end_runs_no_forward(step, gamma):
    """The state comes back as it was, its key and its cache too, though the weights would have made it NaN."""
    models = (small_target(), small_drafter()) if gamma else (small_target(),)
    options = Options(gamma)
    state = prefill(models[0], PROMPTS, 1, options, jax.random.key(5))
    values = lambda state: jax.tree.map(np.array, state._replace(key=jax.random.key_data(state.key)))
    before = values(state)
    models = jax.tree.map(lambda weight: weight * jnp.nan if weight.dtype == jnp.float32 else weight, models)
    state, report = jit_flat(round_loop._rounds(step, 3), options, *models)((state, np.int32(3)))
    assert report.done.all() and report.count == 0
    jax.tree.map(np.testing.assert_array_equal, values(state), before)


def test_rounds_seen_stay_as_they_were():
    """What `on_round` gets is not overwritten by later rounds, whose calls reuse the state's buffers."""
    rounds, copies = [], []

    def on_round(last):
        rounds.append(last)
        copies.append(jax.tree.map(np.array, last))

    decoding.generate(small_target(), small_drafter(), PROMPTS, max_new_tokens=21, draft_length=3, on_round=on_round)
    jax.tree.map(np.testing.assert_array_equal, rounds, copies)


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_stopping_early_leaves_nothing_broken(stop_after):
    """By an exception in `on_round`, or by a consumer that takes no more: the next generation is as if nothing had been."""
    pair, settings = (small_target(), small_drafter()), {"max_new_tokens": 21, "draft_length": 3}
    whole = decoding.generate(*pair, PROMPTS, **settings)
    seen = []

    def on_round(last):
        seen.append(last)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoding.generate(*pair, PROMPTS, **settings, on_round=on_round)
    state = prefill(pair[0], PROMPTS, 21, Options(3), jax.random.key(0))
    some = [
        last
        for last, _ in zip(
            round_loop.rounds(state, speculative_round, Options(3), *pair), range(stop_after), strict=False
        )
    ]
    jax.tree.map(np.testing.assert_array_equal, some, seen)
    again = decoding.generate(*pair, PROMPTS, **settings)
    jax.tree.map(np.testing.assert_array_equal, again.tokens, whole.tokens)


def test_a_compiled_step_reuses_the_cache_that_it_is_given():
    """Or there would be two of them."""
    target, options = small_target(), Options(0)
    state = prefill(target, PROMPTS, 3, options, None)
    jit_flat(autoregressive_round, options, target)(state)
    assert all(buffer.is_deleted() for buffer in jax.tree.leaves(state.cache.layers))


def test_a_step_is_compiled_with_the_options_for_this_backend(monkeypatch):
    """XLA refuses one that it does not know, so that it shows whether they arrive."""
    target = small_target()
    options = Options(0, eos_ids=(VOCAB - 1, VOCAB - 2))  # no other test's, so that nothing is compiled yet
    state = prefill(target, PROMPTS, 3, options, None)
    monkeypatch.setattr("decoding.fast.jit.compiler_options", lambda: {"no_such_option": ""})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        jit_flat(autoregressive_round, options, target)(state)


def test_no_other_platform_is_asked_for_a_cpus_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    assert compiler_options.__wrapped__() == {}


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_heads_are_laid_out_on_a_cpu_alone(platform, monkeypatch):
    """Elsewhere the copy would take memory, and nothing else."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    for model in laid_out(small_target(), small_drafter()):
        assert (model.cpu_head is not None) == (platform == "cpu")


def test_head_laid_out_for_the_cpu():
    """The same logits, from the copy; the model itself stays as it was."""
    target = small_target()
    twin = target.for_cpu()
    hidden = jax.random.normal(jax.random.key(0), (3, target.config.hidden_size))
    np.testing.assert_allclose(twin.logits(hidden), target.logits(hidden), rtol=1e-6)
    twin.cpu_head[...] *= 2
    assert np.abs(twin.logits(hidden) - target.logits(hidden)).max() > 0.1  # it is what `logits` reads
    assert target.cpu_head is None


def test_head_is_laid_out_once_and_follows_the_weights():
    """A new table gives new logits; the old copy goes with the old table."""
    target = small_target()
    target.embed_tokens.weight[...] = target.embed_tokens.weight[...] * 1  # a table that no other test's model shares
    hidden = jax.random.normal(jax.random.key(0), (3, target.config.hidden_size))
    before = target.for_cpu()
    assert target.for_cpu().cpu_head[...] is before.cpu_head[...], "the copy is made once"
    old_logits, old_head = before.logits(hidden), weakref.ref(before.cpu_head[...])
    target.embed_tokens.weight[...] = -target.embed_tokens.weight[...]
    np.testing.assert_allclose(target.for_cpu().logits(hidden), -old_logits, rtol=1e-6)
    del before
    gc.collect()
    assert old_head() is None, "the copy is freed with its table"


def test_kept_by_all_arrays():
    """Any other array means another result; a result lives as long as all arrays that it came from."""
    calls = []
    pick = memoize_by_array(lambda table, order: (calls.append(0), table[order])[1])
    table, order = jnp.arange(4.0) + 5, jnp.array([2, 0])
    first = pick(table, order)
    assert pick(table, order) is first and len(calls) == 1
    np.testing.assert_array_equal(pick(table, jnp.array([1, 3])), [6, 8])  # its order is freed here
    np.testing.assert_array_equal(pick(table * 2, order), [14, 10])
    assert pick(table, order) is first and len(calls) == 3
    first = weakref.ref(first)
    del order
    gc.collect()
    assert first() is None and not jnp.isnan(table).any()
    for value in range(20):  # arrays that come and go may get the ids of those before
        np.testing.assert_array_equal(pick(table, jnp.array([value % 4])), [5 + value % 4])
