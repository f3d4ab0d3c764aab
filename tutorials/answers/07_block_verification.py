"""Answers to the exercises of tutorial 07.  Run it in the folder tutorials: `python answers/07_block_verification.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from exercises.block_verification import check_1, check_2, check_3

# 7.1  Token by token: 0.4 · 1 · 1.  By block: 0.4, then 0.8, then min(1, 1.2) = 1.
assert check_1(token_by_token=0.4, by_block=1.0)


# 7.2  The mean of a number n is the sum over i = 1, 2, .. of the probability that n >= i, because n itself is the sum of
# as many ones.  By block a run of i drafts, or a longer one, is kept with the weight w_i, on average over the drafts behind it.
def mean_kept(ratios: Sequence[float], by_block: bool) -> float:
    total, chance = 0.0, 1.0
    for ratio in ratios:
        chance = min(1.0, chance * ratio) if by_block else chance * min(1.0, ratio)
        total += chance
    return total


assert check_2(mean_kept)

# 7.3  For γ = 1 nothing is proposed behind the only draft, so q = 0 there and s = w · 1 = w.  The test is
#      u < w / (w + 1 - w) = w = min(1, p/q), and since u < 1, this is u < p/q.
#      The rules are alike where the weight never rises: no ratio above 1 after the weight has fallen below 1.  In a the surplus
#      comes first, and c has none; in b and d it follows a deficit.
assert check_3(alike="ac")
