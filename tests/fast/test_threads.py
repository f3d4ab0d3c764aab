"""A batch split over threads: the same rounds and texts of every row, and all threads running at the same time."""

import functools
import threading

import jax
import numpy as np
import pytest

import decoding
from decoding import Options, Sampling, fast
from decoding.baseline import autoregressive_round
from decoding.fast import threads
from decoding.fast.round_loop import rounds_on_device, rounds_streamed
from decoding.fast.threads import rounds_in_threads, run_in_threads, split_rows
from decoding.state import DecodeState, Round
from tests.models import SMALL_VOCAB as VOCAB
from tests.models import small_drafter, small_target

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8], [3], [4, 4, 9, 1, 2]]  # the second is longer than the window
PATIENCE = 30  # seconds until a thread that waits for another gives up


def generate(prompts, count, gamma=3, **settings) -> decoding.Generation:
    settings |= {"loop": "on_device", "threads": count}
    if gamma:
        return decoding.generate(small_target(), small_drafter(), prompts, draft_length=gamma, **settings)
    return decoding.generate_autoregressive(small_target(), prompts, **settings)


@pytest.mark.parametrize(("rows", "count", "gamma"), [(4, 2, 3), (4, 2, 0), (3, 2, 3), (2, 9, 3), (1, 2, 3)])
def test_texts_and_counts(rows, count, gamma):
    """Whether rows divide by threads or not, or there are fewer rows, or a single one."""
    one, many = (generate(PROMPTS[:rows], threads, gamma, max_new_tokens=15) for threads in (1, count))
    assert [text.tolist() for text in many.tokens] == [text.tolist() for text in one.tokens]
    assert many.stats == one.stats


def test_rows_of_a_thread_that_ended_emit_nothing():
    """What a row does in a round is the same, row by row, also after all rows of another thread have ended."""
    texts = generate(PROMPTS, 1, 0, max_new_tokens=30).tokens

    def ends(eos: int) -> list[int]:
        return [text.tolist().index(eos) if eos in text else 30 for text in texts]

    eos = min(range(VOCAB), key=lambda eos: max(ends(eos)[:2]) - max(ends(eos)[2:]))
    assert max(ends(eos)[:2]) + 4 < max(ends(eos)[2:]), "the first two rows should end long before the others"

    seen: list[list[Round]] = [[], []]
    for count, rounds in enumerate(seen, start=1):
        generate(PROMPTS, count, 2, max_new_tokens=30, eos_ids=(eos,), on_round=rounds.append)
    for ours, theirs in zip(*seen, strict=True):
        np.testing.assert_array_equal(ours.num_emitted, theirs.num_emitted)
        for row, count in enumerate(ours.num_emitted):
            np.testing.assert_array_equal(ours.tokens[row, :count], theirs.tokens[row, :count])
            if count:
                np.testing.assert_array_equal(ours.draft_tokens[row], theirs.draft_tokens[row])
                assert ours.num_accepted[row] == theirs.num_accepted[row]
    assert not seen[1][-1].num_emitted[:2].any() and seen[1][-1].num_emitted[2:].any()


@pytest.mark.parametrize("gamma", [0, 3])
def test_sampled(gamma):
    """Rows of one prompt differ, whichever thread has them; the same key writes the same texts."""
    settings = {"max_new_tokens": 21, "sampling": Sampling(1.0), "key": jax.random.key(5)}
    first, second = ([text.tolist() for text in generate([PROMPTS[0]] * 4, 2, gamma, **settings).tokens] for _ in "ab")
    assert first == second
    assert all(first[row][1:] != first[other][1:] for row in range(4) for other in range(row))


@functools.cache
def a_state(rows: int) -> DecodeState:
    return decoding.prefill(small_target(), PROMPTS[:rows], Options(3), max_new_tokens=9, key=jax.random.key(5))


def test_all_threads_run_at_the_same_time(monkeypatch):
    """Each waits for the others: one after the other, none would end."""
    barrier = threading.Barrier(3, timeout=PATIENCE)

    def loop(state, *args):
        yield jax.device_get(state.last)
        barrier.wait()
        yield jax.device_get(state.last)

    monkeypatch.setattr(threads, "rounds_on_device", loop)
    prefill, last = rounds_in_threads(a_state(3), autoregressive_round, Options(0), small_target(), threads=3)
    jax.tree.map(np.testing.assert_array_equal, prefill, last)
    assert sorted(run_in_threads([barrier.wait] * 3)) == [0, 1, 2]
    assert run_in_threads([lambda index=index: index for index in range(5)]) == [0, 1, 2, 3, 4]


def test_a_single_call_runs_in_the_callers_thread():
    assert (fast.run("streamed"), fast.run("on_device")) == (rounds_streamed, rounds_on_device)
    assert run_in_threads([threading.current_thread]) == [threading.current_thread()]


def test_the_prefills_round_arrives_before_the_others_run(monkeypatch):
    monkeypatch.setattr(threads, "run_in_threads", lambda calls: pytest.fail("too early"))
    state = a_state(3)
    rounds = rounds_in_threads(state, autoregressive_round, Options(0), small_target(), threads=2)
    jax.tree.map(np.testing.assert_array_equal, next(rounds), state.last)


def test_parts():
    """Together they are the whole, in order; keys differ from each other and from the one that they were split from."""
    whole = a_state(3)
    parts = split_rows(whole, 2)
    assert [part.token.shape[0] for part in parts] == [2, 1]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part._replace(key=None) for part in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole._replace(key=None))
    keys = [tuple(jax.random.key_data(state.key).tolist()) for state in (whole, *parts)]
    assert len(set(keys)) == 3
    (alone,) = split_rows(whole, 1)
    assert tuple(jax.random.key_data(alone.key).tolist()) == keys[0]


def test_an_error_in_a_thread_is_raised_in_the_callers(monkeypatch):
    def loop(state, *args):
        yield jax.device_get(state.last)
        if state.token.shape[0] == 1:
            raise RuntimeError("the second one's")

    monkeypatch.setattr(threads, "rounds_on_device", loop)
    with pytest.raises(RuntimeError, match="the second one's"):
        list(rounds_in_threads(a_state(3), autoregressive_round, Options(0), small_target(), threads=2))
