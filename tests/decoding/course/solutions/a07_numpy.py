"""Right, row by row in NumPy."""

import numpy as np


def clustered_logits(hidden, table, centroids, token_ordering, top_k):
    size = len(token_ordering) // len(centroids)
    logits = np.full((len(hidden), len(table)), -np.inf)
    for row, state in enumerate(hidden):
        for cluster in np.argsort([-float(state @ centroid) for centroid in centroids])[:top_k]:
            for token in token_ordering[cluster * size : (cluster + 1) * size]:
                logits[row, token] = state @ table[token]
    return logits


def clustered_argmax(*arguments):
    return [int(np.argmax(row)) for row in clustered_logits(*arguments)]
