"""Answers to the exercises of tutorial 06.  Run it in the folder tutorials: `python answers/06_accept_and_reject.py`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from exercises.accept_and_reject import check_1, check_2, check_3

# 6.1  min(p, q) = (0.2, 0.3, 0.2), whose sum is 0.7.  p - q is positive for word 0 alone.
assert check_1(acceptance=0.7, word=0)


# 6.2  Where p = q the sum is 0.  A draft is never refused there, so that any distribution does; p is a natural one.
def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    rest = np.maximum(p - q, 0)
    return rest / rest.sum() if rest.sum() > 0 else p


assert check_2(residual)

# 6.3  The larger of a and b is the smaller one plus |a - b|, so a + b = 2 min(a, b) + |a - b|, or
#      min(a, b) = (a + b - |a - b|) / 2.  Summed over all words: (1 + 1 - sum |p - q|) / 2 = 1 - TV(p, q).
#      A q that puts everything on one word x is accepted with min(p(x), 1) = p(x), which is least for the target's least
#      likely word.  Elsewhere it is at least as large: the sum of min(p, q) is concave in q, and takes its minimum at a corner.
assert check_3(worst=(0, 0, 1), worst_with_a_tenth=(0.1, 0.1, 0.8))
