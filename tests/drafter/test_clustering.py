"""The clustered head: how clusters are built, and that scoring with them is the dense head on fewer tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import Sampling
from decoding.sampling import token_probs
from drafter import Clusters, cluster_recall, cluster_vocabulary, clustered_argmax, clustered_logits

VOCAB, WIDTH, CENTROIDS = 512, 12, 32
SIZE = VOCAB // CENTROIDS


@functools.cache
def table() -> np.ndarray:
    """Table rows around 40 centres of unequal weight, as in embedding tables: neither one cloud nor separate clusters."""
    rng = np.random.default_rng(0)
    centres, shares = rng.normal(size=(40, WIDTH)), rng.dirichlet(np.full(40, 2.0))
    return (centres[rng.choice(40, VOCAB, p=shares)] + 0.3 * rng.normal(size=(VOCAB, WIDTH))).astype(np.float32)


@functools.cache
def clusters() -> Clusters:
    return cluster_vocabulary(table(), CENTROIDS)


def members(ordering) -> np.ndarray:
    return np.asarray(ordering).reshape(CENTROIDS, SIZE)


def cost(rows: np.ndarray, ordering) -> float:
    """Squared distance of table rows to the means of their clusters."""
    groups = rows[members(ordering)]
    return float(np.square(groups - groups.mean(axis=1, keepdims=True)).sum())


def hidden_states(count: int, seed: int = 1) -> jnp.ndarray:
    """Each points to some token, as a drafter's do, but not exactly."""
    rng = np.random.default_rng(seed)
    rows = table()[rng.integers(0, VOCAB, count)] + 0.5 * rng.normal(size=(count, WIDTH))
    return jnp.asarray(rows, jnp.float32)


# -- building ----------------------------------------------------------------------------------------------------------


def test_clusters_hold_every_token_once():
    """The ordering is a permutation, so that clusters have one size; centroids are the means of their table rows (1e-6)."""
    centroids, ordering = clusters()
    assert ordering.dtype == jnp.int32 and centroids.shape == (CENTROIDS, WIDTH)
    np.testing.assert_array_equal(np.sort(ordering), np.arange(VOCAB))
    np.testing.assert_allclose(centroids, table()[members(ordering)].mean(axis=1), rtol=0, atol=1e-6)


def test_clustering_is_deterministic():
    for first, again in zip(clusters(), cluster_vocabulary(table().copy(), CENTROIDS), strict=True):
        np.testing.assert_array_equal(first, again)


def test_clusters_are_better_than_chance_and_than_the_start():
    """Less than half the squared distance of random clusters; the sweeps improve on the bisection."""
    random = np.random.default_rng(2).permutation(VOCAB)
    ours, start = (
        cost(table(), clusters().token_ordering),
        cost(table(), cluster_vocabulary(table(), CENTROIDS, sweeps=1)[1]),
    )
    assert ours < start < 0.5 * cost(table(), random)


def test_planted_clusters_are_found():
    """Thirty-two tight groups of one size, in shuffled order, are found exactly."""
    rng = np.random.default_rng(3)
    group = rng.permutation(np.repeat(np.arange(CENTROIDS), SIZE))
    rows = (10 * rng.normal(size=(CENTROIDS, WIDTH)))[group] + 0.01 * rng.normal(size=(VOCAB, WIDTH))
    found = group[members(cluster_vocabulary(rows.astype(np.float32), CENTROIDS).token_ordering)]
    assert (found == found[:, :1]).all()


@pytest.mark.parametrize("num_centroids", [1, VOCAB])
def test_one_cluster_and_one_token_a_cluster(num_centroids):
    """A permutation, and centroids that are the means of its groups (1e-5), which they are not if a cluster is over-full."""
    centroids, ordering = cluster_vocabulary(table(), num_centroids)
    np.testing.assert_array_equal(np.sort(ordering), np.arange(VOCAB))
    groups = table()[np.asarray(ordering).reshape(num_centroids, -1)]
    np.testing.assert_allclose(centroids, groups.mean(axis=1), rtol=0, atol=1e-5)


def test_the_start_is_balanced_for_any_number_of_clusters():
    """Three: each part of a bisection has its own tokens.  Centroids of an over-full cluster would not be means (1e-6)."""
    rows = table()[:510]
    centroids, ordering = cluster_vocabulary(rows, 3, sweeps=1)
    np.testing.assert_allclose(centroids, rows[np.asarray(ordering).reshape(3, -1)].mean(axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_centroids", [0, -4, 5, 1000])
def test_clusters_of_unequal_size_are_refused(num_centroids):
    with pytest.raises(ValueError, match=f"num_centroids: expected a divisor of the 512 tokens, got {num_centroids}"):
        cluster_vocabulary(table(), num_centroids)


def test_recall():
    """How often the dense argmax is among the scored tokens: as by hand, 1 with all clusters, and far from chance.

    8 of 32 clusters hold the argmax of over 90% of hidden states; 8 random clusters would hold 25%.
    """
    hidden, (centroids, ordering) = hidden_states(400), clusters()
    best = np.argmax(hidden @ table().T, axis=1)
    cluster_of = np.empty(VOCAB, int)
    cluster_of[np.asarray(ordering)] = np.arange(VOCAB) // SIZE
    recalls = []
    for top_k in (1, 4, 8, CENTROIDS):
        chosen = np.argsort(-np.asarray(hidden @ centroids.T), axis=1)[:, :top_k]
        by_hand = (chosen == cluster_of[best][:, None]).any(axis=1).mean()
        recalls.append(cluster_recall(hidden, jnp.asarray(table()), centroids, ordering, top_k))
        assert recalls[-1] == pytest.approx(by_hand)
    assert recalls == sorted(recalls) and recalls[-1] == 1
    assert recalls[2] > 0.9


# -- scoring -----------------------------------------------------------------------------------------------------------

TOP_K = 5


@functools.cache
def head() -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    """Table, centroids and an ordering that is not its own inverse, so that a test fails if the two are confused."""
    centroids, ordering = clusters()
    assert (np.asarray(ordering)[np.asarray(ordering)] != np.arange(VOCAB)).any()
    return jnp.asarray(table()), centroids, ordering


@functools.partial(jax.jit, static_argnums=2)
def logits_and_argmax(hidden, head, top_k):
    return clustered_logits(hidden, *head, top_k), clustered_argmax(hidden, *head, top_k)


def test_scored_tokens_have_their_dense_logits():
    """The tokens of the five best clusters, by hand: dense logits to 1e-5.  All others: -inf, probability exactly 0."""
    hidden, (rows, centroids, ordering) = hidden_states(16), head()
    logits = np.asarray(logits_and_argmax(hidden, head(), TOP_K)[0])
    dense = np.asarray(hidden @ rows.T)
    for row in range(len(hidden)):
        best = np.argsort(-np.asarray(hidden[row] @ centroids.T))[:TOP_K]
        scored = np.zeros(VOCAB, bool)
        scored[np.ravel([ordering[c * SIZE : (c + 1) * SIZE] for c in best])] = True
        assert scored.sum() == TOP_K * SIZE
        np.testing.assert_allclose(logits[row][scored], dense[row][scored], rtol=0, atol=1e-5)
        assert (logits[row][~scored] == -np.inf).all()
        for sampling in (Sampling(1.0), Sampling(2.0, top_k=300), Sampling(1.0, top_p=0.999), Sampling()):
            probs = np.asarray(token_probs(jnp.asarray(logits[row]), sampling))
            assert (probs[~scored] == 0).all() and probs.sum() == pytest.approx(1, abs=1e-5)


def test_clustered_argmax():
    """`clustered_argmax` is argmax of `clustered_logits`."""
    logits, best = logits_and_argmax(hidden_states(64), head(), TOP_K)
    assert best.dtype == jnp.int32
    np.testing.assert_array_equal(best, np.argmax(logits, axis=1))


def test_a_logit_that_is_not_a_number_gives_an_id_of_the_vocabulary():
    """A greedy draft of a damaged drafter is embedded like any other."""
    _, best = logits_and_argmax(hidden_states(4) * jnp.nan, head(), TOP_K)
    assert (best == VOCAB - 1).all()


def test_of_equal_tokens_the_lowest_id_wins():
    """Every table row has copies, in its cluster and in others: exact ties, whichever cluster comes first."""
    rng = np.random.default_rng(4)
    rows = np.tile(rng.integers(-3, 4, (VOCAB // 8, WIDTH)), (8, 1)).astype(np.float32)
    tied = jnp.asarray(rows), jnp.asarray(rng.normal(size=(CENTROIDS, WIDTH)), jnp.float32), head()[2]
    hidden = jnp.asarray(rng.integers(-3, 4, (64, WIDTH)), jnp.float32)
    logits, best = map(np.asarray, logits_and_argmax(hidden, tied, 12))
    assert ((logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1).mean() > 0.5
    np.testing.assert_array_equal(best, np.argmax(logits, axis=1))


def test_rows_are_independent():
    """Two rows of a batch choose and score as each does alone: no fill, threshold or choice is shared.

    Logits within 1e-6 of the row's largest.
    """
    hidden = jnp.stack([hidden_states(1)[0], -20 * hidden_states(2)[1]])
    together, best = logits_and_argmax(hidden, head(), TOP_K)
    for row in range(2):
        alone, best_alone = logits_and_argmax(hidden[row : row + 1], head(), TOP_K)
        np.testing.assert_array_equal(np.isfinite(together[row]), np.isfinite(alone[0]))
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-6 * abs(alone[np.isfinite(alone)]).max())
        assert best[row] == best_alone[0]


def test_with_all_clusters_it_is_the_dense_head():
    """top_k == num_centroids: dense logits (1e-5) and their argmax."""
    hidden = hidden_states(64)
    logits, best = logits_and_argmax(hidden, head(), CENTROIDS)
    np.testing.assert_allclose(logits, hidden @ head()[0].T, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(best, np.argmax(hidden @ head()[0].T, axis=1))
