"""What happened in a generation, counted by hand from three rounds of two rows."""

import numpy as np

from decoding import Round, Stats

GAMMA = 3


def a_round(num_accepted: list[int], num_emitted: list[int], gamma: int = GAMMA) -> Round:
    rows = len(num_accepted)
    return Round(
        np.zeros((rows, gamma), int), np.array(num_accepted), np.zeros((rows, gamma + 1), int), np.array(num_emitted)
    )


def counted() -> Stats:
    stats = Stats()
    stats.add_prefill(a_round([0, 0], [1, 1]))
    stats.add_round(a_round([2, 0], [3, 1]))
    stats.add_round(
        a_round([3, 3], [4, 2])
    )  # the second row ends within the run: two of its accepted drafts are emitted
    stats.add_round(a_round([1, 3], [1, 0]))  # the first row ends with its accepted draft; the second is done
    return stats


def test_counts():
    stats = counted()
    assert (stats.prompts, stats.emitted) == (2, 2 + 4 + 6 + 1)
    assert stats.rounds == 2 + 2 + 1, "a row that is done takes no part"
    assert stats.drafted == 5 * GAMMA
    assert stats.accepted == (2 + 0) + (3 + 2) + 1, "what was emitted of them"
    assert stats.reached == [4, 3, 1], "rounds that accepted the first draft, the second, the third"
    own_tokens = 3  # after a run that did not end the text
    assert stats.emitted == stats.prompts + stats.accepted + own_tokens


def test_rates():
    stats = counted()
    assert stats.tokens_per_round == (4 + 6 + 1) / 5
    assert stats.acceptance_per_position == [4 / 5, 3 / 5, 1 / 5]
    assert stats.as_dict() == {
        "rounds": 5,
        "drafted": 15,
        "accepted": 8,
        "emitted": 13,
        "tokens_per_round": 2.2,
        "acceptance_per_position": [0.8, 0.6, 0.2],
    }


def test_without_rounds():
    """A text of one token: nothing is divided by 0."""
    stats = Stats()
    stats.add_prefill(a_round([0], [1]))
    assert (stats.tokens_per_round, stats.acceptance_per_position) == (0.0, [])


def test_without_drafts():
    stats = Stats()
    stats.add_prefill(a_round([0], [1], gamma=0))
    for _ in range(3):
        stats.add_round(a_round([0], [1], gamma=0))
    assert (stats.tokens_per_round, stats.acceptance_per_position, stats.drafted) == (1.0, [], 0)
