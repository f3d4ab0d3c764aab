"""Each faster loop of `generate` against the plain one, token for token; and how the faster loops call the device."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding import Generation, Options, Round, Sampling
from decoding.baseline import autoregressive_round
from decoding.fast import round_loop
from decoding.fast.jit import jit_flat
from decoding.fast.round_loop import rounds_streamed
from decoding.fast.threads import split_rows
from decoding.generation import autoregressive_rounds, collect, speculative_rounds
from decoding.round import speculative_round
from decoding.stages import prefill
from tests.models import SMALL, random_target, small_drafter, small_target

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8], [3], [4, 4, 9, 1, 2]]  # the second is longer than the window
GAMMA, NEW_TOKENS, THREADS = 3, 21, 2
FLAT = {"sampling": Sampling(2.0, top_k=12, top_p=0.95), "eos_ids": (1,)}
FLAT_DRAFTS = {"draft_length": GAMMA, "draft_sampling": Sampling(2.0)}
# With this drafter and these EOS tokens, texts end inside accepted runs, by EOS and by budget (asserted below).
DRAFTER_SEED = 5
CASES: dict[str, dict[str, Any]] = {
    "speculative, greedy": {"draft_length": GAMMA, "eos_ids": (14,)},
    "speculative, sampled, by token": FLAT | FLAT_DRAFTS,
    "speculative, sampled, by block": FLAT | FLAT_DRAFTS | {"acceptance": "block"},
    "autoregressive, greedy": {"eos_ids": (14,)},
    "autoregressive, sampled": FLAT,
}
LOOPS = {
    "plain": {"loop": "plain"},
    "streamed": {"loop": "streamed"},
    "on_device": {"loop": "on_device"},
    "threads": {"loop": "on_device", "threads": THREADS},
}
RUNS = ((5, NEW_TOKENS), (6, NEW_TOKENS), (5, 1), (5, 2))  # seed of the key, and max_new_tokens: nothing new to compile


class Run(NamedTuple):
    generation: Generation
    rounds: list[Round]


def models(case: str) -> tuple:
    return (small_target(), small_drafter(DRAFTER_SEED)) if case.startswith("speculative") else (small_target(),)


def run(case: str, seed: int = 5, prompts: list[list[int]] = PROMPTS, **settings) -> Run:
    generate = decoding.generate if case.startswith("speculative") else decoding.generate_autoregressive
    rounds: list[Round] = []
    settings = {"max_new_tokens": NEW_TOKENS, "key": jax.random.key(seed), "on_round": rounds.append} | settings
    return Run(generate(*models(case), prompts, **CASES[case], **settings), rounds)


@functools.cache
def runs(case: str, loop: str) -> list[Run]:
    return [run(case, seed, max_new_tokens=new_tokens, **LOOPS[loop]) for seed, new_tokens in RUNS]


@functools.cache
def plain_runs_of_threads(case: str) -> list[Run]:
    """What the plain loop does with each thread's rows and key; rounds that one part runs alone are left out."""
    is_speculative, out = case.startswith("speculative"), []
    options = Options(**({"draft_length": 0} | CASES[case]))
    plain_rounds = speculative_rounds if is_speculative else autoregressive_rounds
    for seed, new_tokens in RUNS:
        state = decoding.prefill(small_target(), PROMPTS, options, max_new_tokens=new_tokens, key=jax.random.key(seed))
        parts = [list(plain_rounds(*models(case), part, options)) for part in split_rows(state, THREADS)]
        generations = [collect(iter(rounds)) for rounds in parts]
        rounds = [jax.tree.map(lambda *rows: np.concatenate(rows), *part) for part in zip(*parts, strict=False)]
        out.append(Run(Generation(sum((g.tokens for g in generations), []), generations[0].stats), rounds))
    return out


def assert_same_texts(ours: Generation, reference: Generation) -> None:
    assert [text.tolist() for text in ours.tokens] == [text.tolist() for text in reference.tokens]


def assert_same_rounds(ours: list[Round], reference: list[Round]) -> None:
    """In what has a meaning: the tokens that are emitted, and of rows that emit something the drafts and their number."""
    for number, (our, their) in enumerate(zip(ours, reference, strict=False)):
        np.testing.assert_array_equal(our.num_emitted, their.num_emitted, err_msg=f"round {number}")
        for row in np.flatnonzero(their.num_emitted):
            count, what = their.num_emitted[row], f"round {number}, row {row}"
            np.testing.assert_array_equal(our.tokens[row, :count], their.tokens[row, :count], err_msg=what)
            np.testing.assert_array_equal(our.draft_tokens[row], their.draft_tokens[row], err_msg=what)
            assert our.num_accepted[row] == their.num_accepted[row], what


@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop != "plain"])
@pytest.mark.parametrize("case", CASES)
def test_a_faster_loop_equals_the_plain_one(case, loop):
    """Texts, counts, and round by round what each row drafted, accepted and emitted.

    Ragged prompts; texts of one token, of two and of many; EOS and budget inside a run.  Threads draw from keys of their own:
    where the text is sampled, the plain loop runs once for each thread's rows.
    """
    is_sampled_in_threads = loop == "threads" and "sampled" in case
    reference = plain_runs_of_threads(case) if is_sampled_in_threads else runs(case, "plain")
    for ours, theirs in zip(runs(case, loop), reference, strict=True):
        assert_same_texts(ours.generation, theirs.generation)
        assert_same_rounds(ours.rounds, theirs.rounds)
        if not is_sampled_in_threads:
            assert ours.generation.stats == theirs.generation.stats
            assert len(ours.rounds) == len(theirs.rounds)


@pytest.mark.parametrize("case", CASES)
def test_streamed_and_on_device_yield_the_same_arrays(case):
    """They are one program, so that even what has no meaning is equal."""
    for streamed, on_device in zip(runs(case, "streamed"), runs(case, "on_device"), strict=True):
        for ours, theirs in zip(streamed.rounds, on_device.rounds, strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_the_texts_are_worth_comparing(case):
    """Rows end at different rounds; accepted runs are cut by an EOS and by the budget; texts of one token need no round."""
    reference = runs(case, "plain")
    lengths = [len(text) for run in reference[:2] for text in run.generation.tokens]
    assert NEW_TOKENS in lengths and len(set(lengths)) > 2
    assert [len(run.rounds) for run in reference][2:] == [1, 2]
    if not case.startswith("speculative"):
        return
    ends = {"EOS": 0, "budget": 0}
    for last in (last for run in reference[:2] for last in run.rounds[1:]):
        for row in np.flatnonzero((0 < last.num_emitted) & (last.num_emitted <= last.num_accepted)):
            newest = last.tokens[row, last.num_emitted[row] - 1]
            ends["EOS" if newest in CASES[case]["eos_ids"] else "budget"] += 1
    assert min(ends.values()) >= 1, ends


@pytest.fixture
def wide_numbers():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_with_64_bit_numbers_allowed(wide_numbers):
    """`jax_enable_x64` widens every array made without a dtype; the state of a loop must keep its dtypes."""
    greedy = [run("speculative, greedy", **LOOPS[loop]) for loop in ("plain", "streamed", "on_device")]
    alone = run("autoregressive, greedy", loop="on_device")
    for other in (*greedy[1:], alone):
        assert_same_texts(other.generation, greedy[0].generation)
    sampled = [run("speculative, sampled, by token", **LOOPS[loop]) for loop in ("plain", "on_device")]
    assert_same_texts(sampled[1].generation, sampled[0].generation)
    for plain, fast in ((greedy[0], greedy[1]), (greedy[0], greedy[2]), sampled):
        assert_same_rounds(fast.rounds, plain.rounds)


# -- a cache that grows ------------------------------------------------------------------------------------------------


GROWING = [
    (case, loop)
    for case in ("speculative, greedy", "speculative, sampled, by token", "autoregressive, greedy")
    for loop in LOOPS
    if loop != "plain"
]
QUICK = [("speculative, greedy", "streamed"), ("speculative, sampled, by token", "on_device")]


@pytest.mark.parametrize(
    ("case", "loop"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in GROWING]
)
def test_a_text_goes_on_in_larger_caches(monkeypatch, case, loop):
    """The text of one cache that has room for all of it, 300 tokens; a short one may end before its cache is full."""
    monkeypatch.setattr(prefill, "MIN_CAPACITY", 1)
    monkeypatch.setattr(decoding.fast, "FIRST_ROOM", 1)
    target = random_target(dataclasses.replace(SMALL, max_position_embeddings=512), seed=18)
    some = (target, *models(case)[1:])
    settings = CASES[case] | {"eos_ids": (), "max_new_tokens": 300, "key": jax.random.key(3)}
    generate = decoding.generate if case.startswith("speculative") else decoding.generate_autoregressive
    sizes, grow = [], round_loop.grown

    def watched(state, config):
        state = grow(state, config)
        sizes.append(round_loop.capacity_of(state.cache, config))
        return state

    monkeypatch.setattr(round_loop, "grown", watched)
    prompts = PROMPTS[:1] if loop == "threads" else PROMPTS[:2]  # a thread draws from a key of its own
    texts = generate(*some, prompts, **settings, **LOOPS[loop])
    assert sizes == [128, 256, 512]
    assert_same_texts(texts, generate(*some, prompts, **settings, loop="plain"))


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """An item for each call of a compiled loop."""
    made = []

    def counting(*args):
        run = jit_flat(*args)

        def counted(state):
            made.append(0)
            return run(state)

        return counted

    monkeypatch.setattr(round_loop, "jit_flat", counting)
    return made


@pytest.mark.parametrize(
    "seconds, calls_when_seen",
    [
        (1.0, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (0.01, [0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
        (1e-5, [0, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5]),
    ],
)
def test_rounds_arrive_as_they_end_while_the_next_call_runs(calls, monkeypatch, seconds, calls_when_seen):
    """A call runs one round, or as many as take 25 ms, up to eight.  One call is ahead: the device never waits for the host.

    By a clock that each round advances.  The first round to arrive is the prefill's.
    """
    now, when_seen, when_read, read = [0.0], [], [], round_loop._read

    def watched_read(*args):
        when_read.append(len(calls))
        return read(*args)

    def on_round(last):
        now[0] += seconds
        when_seen.append(len(calls))

    monkeypatch.setattr(round_loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(round_loop, "_read", watched_read)
    run("autoregressive, greedy", max_new_tokens=12, on_round=on_round)
    assert when_seen == calls_when_seen and when_read == sorted(set(when_seen) - {0})
    calls.clear()
    run("autoregressive, greedy", max_new_tokens=1)
    assert not calls, "the prefill's token was the last"


@pytest.mark.parametrize("case", ["speculative, greedy", "autoregressive, greedy"])
def test_on_device_all_rounds_are_one_call(calls, case):
    assert len(run(case, loop="on_device").rounds) > 8
    assert len(calls) == 1


@pytest.mark.parametrize("round_fn, gamma", [(speculative_round, GAMMA), (autoregressive_round, 0)])
def test_a_call_after_the_end_runs_no_forward(round_fn, gamma):
    """The state comes back as it was, its key and its cache too, although the weights would have made it NaN."""
    models = (small_target(), small_drafter()) if gamma else (small_target(),)
    options = Options(gamma)
    state = decoding.prefill(models[0], PROMPTS, options, max_new_tokens=1, key=jax.random.key(5))

    def values(state):
        return jax.tree.map(np.array, state._replace(key=jax.random.key_data(state.key)))

    before = values(state)
    models = jax.tree.map(lambda weight: weight * jnp.nan if weight.dtype == jnp.float32 else weight, models)
    state, log = jit_flat(round_loop._rounds(round_fn, 3), options, *models)((state, np.int32(3)))
    assert log.done.all() and log.count == 0
    jax.tree.map(np.testing.assert_array_equal, values(state), before)


def test_rounds_stay_as_they_were_delivered():
    """What `on_round` receives is not overwritten by later rounds, whose calls reuse the state's buffers."""
    rounds, copies = [], []

    def on_round(last):
        rounds.append(last)
        copies.append(jax.tree.map(np.array, last))

    run("speculative, greedy", on_round=on_round)
    jax.tree.map(np.testing.assert_array_equal, rounds, copies)


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_stopping_early_leaves_nothing_broken(stop_after):
    """By an exception in `on_round`, or by a consumer that takes no more: the next generation is complete."""
    case, seen = "speculative, greedy", []

    def on_round(last):
        seen.append(last)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(case, on_round=on_round)
    target, draft_model = models(case)
    target, draft_model = decoding.fast.for_backend(target), decoding.fast.for_backend(draft_model)
    options = decoding.fast.with_kernels(Options(**CASES[case]))
    state = decoding.prefill(target, PROMPTS, options, max_new_tokens=NEW_TOKENS)
    rounds = rounds_streamed(state, speculative_round, options, target, draft_model)
    some = [last for last, _ in zip(rounds, range(stop_after), strict=False)]
    jax.tree.map(np.testing.assert_array_equal, some, seen)
    assert_same_texts(run(case).generation, runs(case, "streamed")[0].generation)
