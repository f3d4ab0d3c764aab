"""Wrong answers to the exercises of 05."""

import numpy as np

RANDOM = np.random.default_rng(5)
TABLE, STATES = RANDOM.normal(size=(2048, 128)), RANDOM.normal(size=(20, 128))
FREQUENCY = RANDOM.permutation(2048)
BY_FREQUENCY = np.argsort(-FREQUENCY)
GIVEN = FREQUENCY, STATES.astype(np.float32), TABLE.astype(np.float32)

WRONG = {
    1: [(None, None), (1.0, 2048 * 128), (0.99, 2112 * 128), (1.0, 2112), (1.0, 64 * 128)],
    2: [
        (None, None, *GIVEN),
        (BY_FREQUENCY[::-1], 0.5, *GIVEN),
        (np.argsort(BY_FREQUENCY), 0.5, *GIVEN),
        (BY_FREQUENCY[:-1], 0.5, *GIVEN),
        (np.zeros(2048, int), 0.5, *GIVEN),
        (BY_FREQUENCY, 1.0, *GIVEN),
    ],
    3: [
        (None, []),
        (False, []),
        (True, []),
        (True, ["draft"]),
        (True, ["correction"]),
        (True, ["bonus token"]),
        (True, ["draft", "correction", "bonus token"]),
    ],
}
