"""Stage 4: which tokens a round emits."""

import doctest

import jax.numpy as jnp
import pytest

import decoding.stages.emit
from decoding.stages.emit import count_emitted, with_next_token

EOS, OTHER_EOS = 1, 2


def test_the_examples_in_docstrings():
    result = doctest.testmod(decoding.stages.emit)
    assert result.attempted and not result.failed


def test_the_targets_token_follows_the_accepted_drafts():
    drafts = jnp.array([[3, 5, 8], [13, 21, 34], [1, 2, 4]])
    tokens = with_next_token(drafts, jnp.array([0, 2, 3]), jnp.array([50, 51, 52]))
    emitted = [tokens[0, :1], tokens[1, :3], tokens[2, :4]]
    assert [row.tolist() for row in emitted] == [[50], [13, 21, 51], [1, 2, 4, 52]]


@pytest.mark.parametrize(
    "tokens, num_tokens, room, done, expected",
    [
        ([5, 6, 7, 8], 3, 9, False, (3, False)),
        ([5, EOS, 7, 8], 3, 9, False, (2, True)),
        ([EOS, 6, 7, 8], 1, 9, False, (1, True)),
        ([5, 6, 7, EOS], 4, 9, False, (4, True)),
        ([5, OTHER_EOS, EOS, 8], 4, 9, False, (2, True)),
        ([5, 6, EOS, 8], 2, 9, False, (2, False)),  # among the rejected
        ([5, 6, 7, 8], 4, 2, False, (2, True)),
        ([5, 6, 7, 8], 4, 4, False, (4, True)),
        ([5, 6, EOS, 8], 4, 2, False, (2, True)),  # the budget ends first
        ([5, EOS, 7, 8], 4, 3, False, (2, True)),  # the text ends first
        ([5, EOS, 7, 8], 4, 9, True, (0, True)),  # a row that was done
        ([5, 6, 7, 8], 4, 0, True, (0, True)),
    ],
)
def test_a_run_ends_after_its_first_eos_and_at_the_end_of_the_budget(tokens, num_tokens, room, done, expected):
    """Beside a row that goes on: rows are independent."""
    other = [5, 6, 7, 8], 4, 9, False
    num_emitted, now_done = count_emitted(
        *map(jnp.array, zip((tokens, num_tokens, room, done), other, strict=True)), (EOS, OTHER_EOS)
    )
    assert (int(num_emitted[0]), bool(now_done[0])) == expected
    assert (int(num_emitted[1]), bool(now_done[1])) == (4, False)


def test_without_eos_ids_the_budget_alone_ends_a_text():
    num_emitted, done = count_emitted(
        jnp.array([[5, EOS, 7], [0, 0, 0]]), jnp.array([3, 3]), jnp.array([9, 2]), jnp.array([False, False]), ()
    )
    assert (num_emitted.tolist(), done.tolist()) == ([3, 2], [False, True])
