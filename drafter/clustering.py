"""The clustered vocabulary head, in both directions: score with clusters, and build them.

A dense head scores every token: v x d multiplications.  The clustered head scores `num_centroids` centroids first and
then only the tokens of the best `top_k` clusters (E2B: 2048 centroids, then 32 clusters of 128 tokens out of 262,144).
All clusters have one size, so the tokens of cluster c are row c of `token_ordering.reshape(num_centroids, -1)`.

Source: `Gemma4AssistantMaskedEmbedder`, transformers 5.22.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Clusters(NamedTuple):
    centroids: Float[Array, "clusters d"]
    token_ordering: Int[Array, " v"]  # token ids, cluster after cluster


def best_clusters(
    hidden: Float[Array, "b d"], centroids: Float[Array, "clusters d"], token_ordering: Int[Array, " v"], top_k: int
) -> tuple[Int[Array, "b top_k"], Int[Array, "b candidates"]]:
    """The `top_k` clusters whose centroids score highest, and their tokens, cluster after cluster."""
    _, clusters = jax.lax.top_k(hidden @ centroids.T, top_k)
    members = token_ordering.reshape(centroids.shape[0], -1)
    return clusters, members[clusters].reshape(hidden.shape[0], -1)


def _candidates(
    hidden: Float[Array, "b d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
) -> tuple[Int[Array, "b candidates"], Float[Array, "b candidates"]]:
    """The tokens of the best clusters, and their logits (float32)."""
    _, tokens = best_clusters(hidden, centroids, token_ordering, top_k)
    logits = jnp.einsum("bd,bcd->bc", hidden, table[tokens])
    return tokens, logits.astype(jnp.float32)


def clustered_logits(
    hidden: Float[Array, "b d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
) -> Float[Array, "b v"]:
    """Logits of the tokens in the `top_k` best clusters; every other token gets -inf, so its probability is exactly 0.

    transformers 5.22.2 gives the others min(selected) - 1 over the whole batch, which leaves them some probability: the same
    argmax, but not a distribution that acceptance may use.
    """
    return scatter_logits(*_candidates(hidden, table, centroids, token_ordering, top_k), table.shape[0])


def clustered_argmax(
    hidden: Float[Array, "b d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
) -> Int[Array, " b"]:
    """argmax of `clustered_logits` without writing down the other logits; the lowest id among equals, as argmax does."""
    return best_candidate(*_candidates(hidden, table, centroids, token_ordering, top_k), table.shape[0])


def scatter_logits(
    tokens: Int[Array, "b candidates"], logits: Float[Array, "b candidates"], vocabulary: int
) -> Float[Array, "b v"]:
    """The candidates' logits at their token ids, -inf elsewhere."""
    batch = tokens.shape[0]
    return jnp.full((batch, vocabulary), -jnp.inf, jnp.float32).at[jnp.arange(batch)[:, None], tokens].set(logits)


def best_candidate(
    tokens: Int[Array, "b candidates"], logits: Float[Array, "b candidates"], vocabulary: int
) -> Int[Array, " b"]:
    """The token with the highest logit; the lowest id among equals, and the last one if a logit is NaN."""
    is_best = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(is_best, tokens, vocabulary - 1).min(axis=-1).astype(jnp.int32)


def cluster_vocabulary(table: Float[np.ndarray, "v d"], num_centroids: int, *, sweeps: int = 10) -> Clusters:
    """Group the rows of an embedding table into `num_centroids` clusters of exactly v / num_centroids tokens.

    Balanced k-means.  Start: split the vocabulary in two along its principal direction, and each part again, in proportion to
    the clusters it will hold.  Then iterate: centroids are the means of their tokens; tokens with the most to lose choose
    their nearest centroid first, and a full cluster sends the rest to their next choice.  Deterministic.
    sweeps: maximum number of k-means iterations, counting the initial assignment.
    Errors: ValueError unless num_centroids divides the number of rows.
    """
    table = np.asarray(table, np.float32)
    vocabulary = len(table)
    if num_centroids < 1 or vocabulary % num_centroids:
        raise ValueError(f"num_centroids: expected a divisor of the {vocabulary} tokens, got {num_centroids}")
    assignment = np.empty(vocabulary, np.int64)
    _bisect(table, np.arange(vocabulary), range(num_centroids), assignment)
    best, best_cost = assignment, np.inf
    for sweep in range(1, sweeps + 1):
        centroids = _means(table, assignment, num_centroids)
        cost = float(np.square(table - centroids[assignment]).sum())
        if cost >= best_cost:
            break
        best, best_cost = assignment, cost
        if sweep < sweeps:
            assignment = _assign(table, centroids)
    ordering = np.lexsort((np.arange(vocabulary), best))
    return Clusters(jnp.asarray(_means(table, best, num_centroids)), jnp.asarray(ordering, jnp.int32))


def _bisect(table: np.ndarray, tokens: np.ndarray, clusters: range, assignment: np.ndarray) -> None:
    """Write the clusters of `tokens` into `assignment`."""
    if len(clusters) == 1:
        assignment[tokens] = clusters[0]
        return
    rows = table[tokens] - table[tokens].mean(axis=0)
    principal = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    half = len(clusters) // 2
    cut = len(tokens) * half // len(clusters)
    order = tokens[np.argsort(rows @ principal, kind="stable")]
    _bisect(table, order[:cut], clusters[:half], assignment)
    _bisect(table, order[cut:], clusters[half:], assignment)


def _means(table: np.ndarray, assignment: np.ndarray, num_centroids: int) -> np.ndarray:
    sums = np.zeros((num_centroids, table.shape[1]), np.float32)
    np.add.at(sums, assignment, table)
    return sums * (num_centroids / len(table))


def _assign(table: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Assign tokens so that every cluster is exactly full.

    Unassigned tokens choose their nearest open cluster, round by round, and each cluster keeps those with the most to lose.
    """
    vocabulary, clusters = len(table), len(centroids)
    free_slots, assignment = np.full(clusters, vocabulary // clusters), np.full(vocabulary, -1)
    norms = np.square(centroids).sum(axis=1)
    while (open_tokens := np.flatnonzero(assignment < 0)).size:
        open_clusters = np.flatnonzero(free_slots)
        distance = norms[open_clusters] - 2 * table[open_tokens] @ centroids[open_clusters].T
        nearest = np.argmin(distance, axis=1)
        first = distance[np.arange(len(open_tokens)), nearest]
        if len(open_clusters) > 1:
            loss = np.partition(distance, 1, axis=1)[:, 1] - first
        else:
            loss = -first
        for index, cluster in enumerate(open_clusters):
            candidates = np.flatnonzero(nearest == index)
            kept = candidates[np.argsort(-loss[candidates], kind="stable")][: free_slots[cluster]]
            assignment[open_tokens[kept]] = cluster
            free_slots[cluster] -= len(kept)
    return assignment


def cluster_recall(
    hidden: Float[Array, "rows d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
) -> float:
    """The share of the given hidden states whose dense argmax is in the chosen clusters, 0..1."""
    dense = jnp.argmax(hidden @ table.T, axis=-1)
    _, tokens = best_clusters(hidden, centroids, token_ordering, top_k)
    return float((tokens == dense[:, None]).any(axis=1).mean())
