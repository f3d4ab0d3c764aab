"""Wrong answers to tutorial 06."""

import numpy as np

WRONG = {
    1: [(0.3, 0), (0.7, 2), (1.0, 0), (None, None)],
    2: [
        (lambda p, q: p,),
        (lambda p, q: np.maximum(p - q, 0),),  # not normalised
        (lambda p, q: np.maximum(q - p, 0) / np.maximum(q - p, 0).sum(),),  # upside down
        (lambda p, q: np.maximum(p - q, 0) / np.maximum(p - q, 0).sum(),),  # 0/0 where p = q
        (lambda p, q: np.where(p > q, p, 0) / p[p > q].sum(),),
    ],
    3: [((0, 0, 1), (0, 0, 1)), ((1, 0, 0), (0.8, 0.1, 0.1)), ((0.2, 0.3, 0.5), (0.1, 0.1, 0.8)), (None, None)],
}
