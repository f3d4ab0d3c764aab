"""Right, in NumPy and Python loops."""

import numpy as np


def residual(target_probs, draft_probs):
    left = np.clip(np.asarray(target_probs, np.float64) - draft_probs, 0, None)
    total = left.sum(-1, keepdims=True)
    return np.where(total == 0, target_probs, left / np.where(total == 0, 1, total))


def decide(target_probs, draft_tokens, draft_probs, uniforms):
    counts, following = [], []
    for p, tokens, q, u in zip(target_probs, draft_tokens, draft_probs, uniforms, strict=True):
        n = 0
        while n < len(tokens):
            x = tokens[n]
            if p[n, x] == 0 or (q[n, x] > 0 and u[n] >= p[n, x] / q[n, x]):
                break
            n += 1
        weights = residual(p[n], q[n]) if n < len(tokens) else p[n]
        total, running, token = sum(weights), weights[0], 0
        while not running > u[-1] * total:
            token += 1
            running += weights[token]
        counts.append(n)
        following.append(token)
    return counts, np.array(following)
