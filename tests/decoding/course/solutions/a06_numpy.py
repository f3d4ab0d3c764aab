"""Right, as a loop."""

import numpy as np


def draft(embed, step, probs, choose, token, hidden, uniforms):
    tokens, told = [], []
    for numbers in uniforms:
        vector, hidden = step(embed(token), hidden)
        distribution = probs(vector)
        token = choose(distribution, numbers)
        tokens.append(token)
        told.append(distribution)
    return np.array(tokens).T, np.stack(told, axis=1)
