"""Right, query by query in NumPy."""

import numpy as np


def attention_mask(query_positions, key_positions, window):
    seen = np.zeros((*query_positions.shape, key_positions.shape[1]), bool)
    for (b, t, s), _ in np.ndenumerate(seen):
        distance = query_positions[b, t] - key_positions[b, s]
        near = distance in range(window) if window is not None else distance >= 0
        seen[b, t, s] = near and key_positions[b, s] >= 0
    return seen


def attention(query, key, value, mask):
    out = np.zeros(query.shape)
    group = query.shape[2] // key.shape[1]
    for b, t, n in np.ndindex(query.shape[:3]):
        slots = np.flatnonzero(mask[b, t])
        if slots.size:
            scores = key[b, n // group, slots].astype(np.float64) @ query[b, t, n]
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ value[b, n // group, slots]
    return out
