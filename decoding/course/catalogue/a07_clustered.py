"""Assignment 07: the clustered vocabulary head."""

from collections.abc import Sequence

import numpy as np

from decoding.course.assignment import Assignment, Call, Check, Cut, Hole, Outputs, cleaned, known, own, variant
from decoding.course.catalogue.inputs import float32, int32

LOGITS, ARGMAX = "drafter.clustering.clustered_logits", "drafter.clustering.clustered_argmax"
BEST, BEST_TOKEN = "drafter.clustering.best_clusters", "drafter.clustering.best_candidate"
BATCH, WIDTH, VOCABULARY, CLUSTERS, CHOSEN = 6, 5, 24, 6, 2


# -- inputs ------------------------------------------------------------------------------------------------------------


def head(rng: np.random.Generator, *, batch: int = BATCH, top_k: int = CHOSEN, negative: bool = False) -> dict:
    """Whole hidden states and table rows, so that logits are exact and often equal; centroids that never are."""
    low = 1 if negative else -2
    hidden = rng.integers(low, 3, (batch, WIDTH))
    table = rng.integers(-2, 0 if negative else 3, (VOCABULARY, WIDTH))
    return {
        "hidden": hidden.astype(np.float32),
        "table": table.astype(np.float32),
        "centroids": rng.normal(0, 1, (CLUSTERS, WIDTH)).astype(np.float32),
        "token_ordering": rng.permutation(VOCABULARY).astype(np.int32),
        "top_k": top_k,
    }


def both(given: dict, about: str) -> list[Call]:
    return [Call("clustered_logits", given, about), Call("clustered_argmax", given, about)]


def example(rng: np.random.Generator) -> list[Call]:
    given = {
        "hidden": float32([[1, 2], [2, -1]]),
        "table": float32([[1, 1], [-1, 2], [2, 0], [0, -2], [3, 1], [1, -1]]),
        "centroids": float32([[1, 0.5], [-1, 1], [0.5, -1]]),
        "token_ordering": int32([4, 0, 1, 5, 3, 2]),
        "top_k": 1,
    }
    return both(given, "three clusters of two tokens, one of them chosen")


def random(rng: np.random.Generator) -> list[Call]:
    return both(head(rng), "six clusters of four tokens, two of them chosen")


def values(rng: np.random.Generator) -> list[Call]:
    return [
        *both(head(rng), "another ordering"),
        *both(head(rng), "a third ordering"),
        *both(head(rng, negative=True), "scores that are all negative"),
        *both(head(rng, batch=1), "a batch of one"),
    ]


def dense(rng: np.random.Generator) -> list[Call]:
    return [
        Call("clustered_logits", head(rng, top_k=CLUSTERS), "all clusters"),
        Call("clustered_logits", head(rng), "two clusters"),
    ]


def judge_dense(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    for call, (logits,) in zip(calls, outputs, strict=True):
        given = call.arguments
        if logits.shape != (BATCH, VOCABULARY):
            return "the logits have another shape than [b, v]"
        scored = np.isfinite(logits)
        if not (scored.sum(axis=1) == given["top_k"] * VOCABULARY // CLUSTERS).all():
            return f"with {call.about}, another number of tokens is scored than the chosen clusters have"
        plain = given["hidden"] @ given["table"].T
        if not np.allclose(logits[scored], plain[scored], atol=1e-4):
            return f"with {call.about}, a scored token has another logit than a dense head gives it"
    return None


DOCSTRING = """
{what}

hidden:         float32 [b, d]; table: float32 [v, d], one row a token.
centroids:      float32 [c, d], one row a cluster.
token_ordering: int32 [v], token ids: first those of cluster 0, then those of cluster 1, and so on.  All have one size.
top_k:          int, how many clusters are searched for each batch row.
Returns:        {returns}
"""
PARAMETERS = "(hidden, table, centroids, token_ordering, top_k)"

ASSIGNMENT = Assignment(
    number="07",
    slug="clustered",
    title="The clustered head",
    question="How can a head find the best of many tokens while it looks at few of them?",
    hours=3,
    read=("glossary.md: centroid, clustered head, draft",),
    task=cleaned(
        """
        A head gives every token a logit: the dot product of the hidden state with the token's row of the table.  For a large
        vocabulary this is most of a drafter's work.  A clustered head scores a few centroids first, each by its dot product
        with the hidden state, and then only the tokens of the clusters whose centroids score highest.

        Acceptance will take these logits for the drafter's distribution, so a token that was not scored must have logit -inf:
        its probability is then exactly 0.
        """
    ),
    by_hand="A token outside the searched clusters is never drafted. Can the text still contain it? Where does it come from?",
    hints=(
        "Write down the example's three clusters as lists of token ids.",
        "Take two hidden states that point in opposite directions. Which clusters does each want?",
        "What is token_ordering[i]: a token, or a place?",
    ),
    holes=(
        Hole(
            name="clustered_logits",
            function=LOGITS,
            signature=PARAMETERS,
            docstring=cleaned(DOCSTRING.format(what="The logits of the tokens in the best clusters.", returns="float32 [b, v], "
                                               "-inf for every token that was not scored.")),
            outputs=("logits",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                like = jnp.zeros((hidden.shape[0], table.shape[0]), jnp.float32)
                return solve("07 clustered_logits", hidden, table, centroids, token_ordering, top_k, like=like)
                """
            ),
        ),
        Hole(
            name="clustered_argmax",
            function=ARGMAX,
            signature=PARAMETERS,
            docstring=cleaned(DOCSTRING.format(what="The scored token with the highest logit; the lowest id among equals.",
                                               returns="int [b]")),
            outputs=("token",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                like = jnp.zeros(hidden.shape[0], jnp.int32)
                return solve("07 clustered_argmax", hidden, table, centroids, token_ordering, top_k, like=like)
                """
            ),
        ),
    ),
    checks=(
        Check(name="example", what="the page's example", points=1, calls=example, is_public=True),
        Check(name="random", what="random numbers, one ordering", points=1, calls=random, is_public=True),
        Check(name="values", what="other orderings, negative scores, equal logits, a batch of one", points=5, calls=values),
        Check(
            name="dense",
            what="scored tokens have the dense head's logits, and as many are scored as the clusters have",
            points=2,
            calls=dense,
            judge=judge_dense,
        ),
    ),
    misconceptions=(
        known(
            "token-ordering-ignored",
            "The members of your clusters are neighbours in the vocabulary. What is the ordering for?",
        ),
        known(
            "token-ordering-inverted",
            "Right for orderings that are their own inverse. Does an entry of the ordering name a token or a place?",
        ),
        known(
            "clusters-interleaved",
            "Members are taken from the wrong clusters. With two clusters of three tokens, which entries of the ordering "
            "belong to the first?",
        ),
        known(
            "dense-head-for-a-clustered-one",
            "Tokens outside the best clusters have a score. How many tokens may be scored for each row?",
        ),
        known(
            "other-clusters-score-zero",
            "Make all scores negative: who wins? And what probability do tokens have that were not scored?",
        ),
        known(
            "clusters-filled-just-below",
            "Tokens that were not scored keep some probability, and how much depends on the other batch rows.",
        ),
        own(
            "nearest-by-distance",
            BEST,
            {"hidden @ centroids.T, top_k": "2 * hidden @ centroids.T - jnp.square(centroids).sum(axis=-1), top_k"},
            "Your clusters are the nearest ones. The page ranks them in another way; when do the two differ?",
        ),
        own(
            "clusters-of-row-zero",
            BEST,
            {"members[clusters]": "members[jnp.broadcast_to(clusters[:1], clusters.shape)]"},
            "Right for the first batch row. Do two rows want the same clusters?",
        ),
        own(
            "worst-clusters",
            BEST,
            {"jax.lax.top_k(hidden @ centroids.T": "jax.lax.top_k(-hidden @ centroids.T"},
            "The clusters that you search are those whose centroids score lowest. In which direction does a sort go?",
        ),
        own(
            "index-for-token",
            BEST_TOKEN,
            {"jnp.where(is_best, tokens, vocabulary - 1).min(axis=-1)": "jnp.argmax(is_best, axis=-1)"},
            "Your best token is a place in the list of those that were scored. Which token stands there?",
        ),
        own(
            "highest-id-among-equals",
            BEST_TOKEN,
            {"jnp.where(is_best, tokens, vocabulary - 1).min(axis=-1)": "jnp.where(is_best, tokens, -1).max(axis=-1)"},
            "Two tokens tie, and the other one is asked for.",
        ),
        own(
            "first-candidate-among-equals",
            BEST_TOKEN,
            {"jnp.where(is_best, tokens, vocabulary - 1).min(axis=-1)": "jnp.take_along_axis("
             "tokens, jnp.argmax(is_best, axis=-1, keepdims=True), axis=-1)[:, 0]"},
            "Two tokens tie, and you take the one that was scored first. What does the page say about equals?",
        ),
    ),
    equivalents=(
        variant("best-token-from-all-logits", BEST_TOKEN, {
            "jnp.where(is_best, tokens, vocabulary - 1).min(axis=-1)": "jnp.argmax(scatter_logits("
            "tokens, logits, vocabulary), axis=-1)"
        }),
    ),
    cuts=(
        Cut(function="drafter.fast.FastDrafter.logits", body="return super().logits(normed)"),
        Cut(
            function="drafter.fast.FastDrafter.argmax",
            body="return super().argmax(normed) if self.config.use_ordered_embeddings else argmax(self.dense_logits(normed))",
        ),
        Cut(
            function="drafter.clustering.cluster_recall",
            body='from decoding.course.delegate import left_out\n\nleft_out("cluster_recall")',
        ),
    ),
    removed=(
        *(f"drafter.clustering.{name}" for name in ("best_clusters", "_candidates", "scatter_logits", "best_candidate")),
        "drafter.fast.FastDrafter._candidates",
        "drafter.fast.candidates_in_blocks",
    ),
    rewritten={
        "drafter/clustering.py": {
            ", so the tokens of cluster c are row c of `token_ordering.reshape(num_centroids, -1)`.": ".",
        },
        "drafter/fast.py": {
            "from drafter.clustering import best_candidate, best_clusters, scatter_logits\n": "",
        },
    },
)  # fmt: skip
