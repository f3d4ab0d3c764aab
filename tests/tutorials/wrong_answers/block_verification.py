"""Wrong answers to tutorial 07."""

import numpy as np

WRONG = {
    1: [(1.0, 1.0), (0.4, 1.2), (0.4, 0.4), (None, None)],
    2: [
        (lambda ratios, by_block: 0.0,),
        (lambda ratios, by_block: float(np.cumprod(np.minimum(ratios, 1)).sum()),),  # the same for both
        (lambda ratios, by_block: float(np.minimum(np.cumprod(ratios), 1).sum()),),  # capped at the end only
    ],
    3: [("bd",), ("c",), ("a",), ("abcd",), ("x",), (None,)],
}
