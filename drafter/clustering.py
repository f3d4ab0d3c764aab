"""The clustered vocabulary head, in both directions: score with clusters, and build them.

A dense head scores every token: v x d multiplications.  The clustered head scores `num_centroids` centroids first and
then only the tokens of the best `top_k` clusters (E2B: 2048 centroids, then 32 clusters of 128 tokens out of 262,144).
All clusters have one size, so the tokens of cluster c are row c of `token_ordering.reshape(num_centroids, -1)`.

The table's rows of one cluster lie scattered over the table.  A CPU reads them faster from a copy of the table in which they
are neighbours, a block for each cluster (`in_blocks`); scoring takes it as `blocks`, and finds the same tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Clusters(NamedTuple):
    centroids: Float[Array, "clusters d"]
    token_ordering: Int[Array, " v"]  # token ids, cluster after cluster


def _candidates(
    hidden: Float[Array, "b d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
    blocks: Float[Array, "clusters size d"] | None = None,
) -> tuple[Int[Array, "b candidates"], Float[Array, "b candidates"]]:
    """The tokens of the `top_k` clusters whose centroids score highest, and their logits (float32)."""
    _, chosen = jax.lax.top_k(hidden @ centroids.T, top_k)
    members = token_ordering.reshape(centroids.shape[0], -1)
    tokens = members[chosen].reshape(hidden.shape[0], -1)
    if blocks is None:
        logits = jnp.einsum("bd,bcd->bc", hidden, table[tokens])
    else:
        logits = _block_by_block(hidden, blocks, chosen)
    return tokens, logits.astype(jnp.float32)


def in_blocks(
    table: Float[Array, "v d"], token_ordering: Int[Array, " v"], num_centroids: int
) -> Float[Array, "clusters size d"]:
    """The table's rows in the order of their clusters."""
    return table[token_ordering].reshape(num_centroids, -1, table.shape[1])


def _block_by_block(
    hidden: Float[Array, "b d"], blocks: Float[Array, "clusters size d"], chosen: Int[Array, "b top_k"]
) -> Float[Array, "b candidates"]:
    """einsum("bd,bcmd->bcm", hidden, blocks[chosen]), in a loop over b and c that reads each block where it lies, uncopied."""

    def of_row(row_and_clusters):
        row, clusters = row_and_clusters

        def of_cluster(cluster):
            # XLA on CPU multiplies bfloat16 as float32.  The barrier keeps it from converting all blocks before the loop.
            # A row times a block: the other way round it would copy the block first.
            now, cluster = jax.lax.optimization_barrier((blocks, cluster))
            return row @ now[cluster].T

        return jax.lax.map(of_cluster, clusters).reshape(-1)

    # vmap would gather the blocks of all rows first: a copy, which in float32 takes as long again (AMD EPYC, eight rows).
    return jax.lax.map(of_row, (hidden, chosen))


def clustered_logits(
    hidden: Float[Array, "b d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
    blocks: Float[Array, "clusters size d"] | None = None,
) -> Float[Array, "b v"]:
    """Logits of the tokens in the `top_k` best clusters; every other token gets -inf, so its probability is exactly 0.

    transformers 5.22.2 fills the others with min(selected) - 1 over the whole batch, which leaves them some probability:
    the same argmax, but not a law that acceptance may use.
    """
    tokens, logits = _candidates(hidden, table, centroids, token_ordering, top_k, blocks)
    rows = jnp.arange(hidden.shape[0])[:, None]
    return jnp.full((hidden.shape[0], table.shape[0]), -jnp.inf, jnp.float32).at[rows, tokens].set(logits)


def clustered_argmax(
    hidden: Float[Array, "b d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
    blocks: Float[Array, "clusters size d"] | None = None,
) -> Int[Array, " b"]:
    """argmax of `clustered_logits` without writing the other logits down; the lowest id among equals, as argmax does."""
    tokens, logits = _candidates(hidden, table, centroids, token_ordering, top_k, blocks)
    is_best = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(is_best, tokens, table.shape[0]).min(axis=-1).astype(jnp.int32)


def cluster_vocabulary(table: Float[np.ndarray, "v d"], num_centroids: int, *, sweeps: int = 10) -> Clusters:
    """Group the rows of an embedding table into `num_centroids` clusters of exactly v / num_centroids tokens.

    Balanced k-means.  Start: halve the vocabulary along its principal direction, and the halves again (each group is cut in
    proportion to the clusters it will hold).  Then sweep: centroids are means; tokens that have most to lose choose their
    nearest centroid first, and a full one sends the rest to their next choice.  Deterministic.
    sweeps: how often to look, the start included, whether the last one still gained.
    Errors: ValueError unless num_centroids divides the number of rows.
    """
    table = np.asarray(table, np.float32)
    vocabulary = len(table)
    if num_centroids < 1 or vocabulary % num_centroids:
        raise ValueError(f"{vocabulary} tokens do not divide into {num_centroids} clusters of one size")
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


def _bisect(table, tokens, clusters, assignment):
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


def _means(table, assignment, num_centroids):
    sums = np.zeros((num_centroids, table.shape[1]), np.float32)
    np.add.at(sums, assignment, table)
    return sums * (num_centroids / len(table))


def _assign(table, centroids):
    """Every cluster full, none over-full: tokens choose in rounds, and each cluster keeps those that would lose most."""
    vocabulary, clusters = len(table), len(centroids)
    room, assignment = np.full(clusters, vocabulary // clusters), np.full(vocabulary, -1)
    norms = np.square(centroids).sum(axis=1)
    while (open_tokens := np.flatnonzero(assignment < 0)).size:
        open_clusters = np.flatnonzero(room)
        distance = norms[open_clusters] - 2 * table[open_tokens] @ centroids[open_clusters].T
        nearest = np.argmin(distance, axis=1)
        first = distance[np.arange(len(open_tokens)), nearest]
        if len(open_clusters) > 1:
            loss = np.partition(distance, 1, axis=1)[:, 1] - first
        else:
            loss = -first
        for place, cluster in enumerate(open_clusters):
            suitors = np.flatnonzero(nearest == place)
            kept = suitors[np.argsort(-loss[suitors], kind="stable")][: room[cluster]]
            assignment[open_tokens[kept]] = cluster
            room[cluster] -= len(kept)
    return assignment


def cluster_recall(
    hidden: Float[Array, "rows d"],
    table: Float[Array, "v d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
) -> float:
    """How often the dense head's argmax lies in the chosen clusters, over the given hidden rows: 0..1."""
    dense = jnp.argmax(hidden @ table.T, axis=-1)
    tokens, _ = _candidates(hidden, table, centroids, token_ordering, top_k)
    return float((tokens == dense[:, None]).any(axis=1).mean())
