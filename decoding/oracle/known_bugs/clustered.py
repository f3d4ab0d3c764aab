"""The clustered vocabulary head: which clusters, which tokens, and the logits of the other tokens."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

LLAMA = Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/pull/24282")
SGLANG = Seen("SGLang", "https://github.com/sgl-project/sglang/pull/24436")

MUTANTS = (
    Mutant(
        name="dense-head-for-a-clustered-one",
        bugs=("B89",),
        rank=17,
        shows_at="E2B/draft/step0/logits",
        effect="fewer accepted drafts",
        what="All tokens are scored, without the clusters that the drafter was trained to choose.",
        seen_in=(LLAMA,),
        fix="Score the tokens of the top-k clusters only.",
        function="drafter.clustering.best_clusters",
        change={"hidden @ centroids.T, top_k)": "hidden @ centroids.T, centroids.shape[0])"},
    ),
    Mutant(
        name="token-ordering-ignored",
        bugs=("B89",),
        rank=17,
        shows_at="E2B/draft/step0/logits",
        effect="fewer accepted drafts",
        what="Cluster c is taken to hold tokens c * size .. c * size + size - 1.",
        seen_in=(LLAMA,),
        fix="Row c of token_ordering.reshape(clusters, -1) lists the tokens of cluster c.",
        function="drafter.clustering.best_clusters",
        change={"members = token_ordering.reshape(": "members = jnp.arange(len(token_ordering)).reshape("},
    ),
    Mutant(
        name="token-ordering-inverted",
        rank=17,
        shows_at="E2B/draft/step0/logits",
        effect="fewer accepted drafts",
        what="token_ordering is read as each token's index, not as the token at each index.",
        fix="token_ordering[index] is a token id.",
        function="drafter.clustering.best_clusters",
        change={"members = token_ordering.reshape(": "members = jnp.argsort(token_ordering).reshape("},
    ),
    Mutant(
        name="clusters-interleaved",
        rank=17,
        shows_at="E2B/draft/step0/logits",
        effect="fewer accepted drafts",
        what="token_ordering is split into clusters by column.",
        fix="Cluster after cluster: reshape(clusters, -1).",
        function="drafter.clustering.best_clusters",
        change={"token_ordering.reshape(centroids.shape[0], -1)": "token_ordering.reshape(-1, centroids.shape[0]).T"},
    ),
    Mutant(
        name="other-clusters-score-zero",
        bugs=("B89",),
        rank=17,
        shows_at="E2B/draft/step0/logits",
        effect="fewer accepted drafts",
        what="Tokens outside the best clusters get logit 0, which may win where all scores are negative.",
        seen_in=(SGLANG,),
        fix="-inf, or a large negative number: probability 0.",
        function="drafter.clustering.scatter_logits",
        change={"-jnp.inf": "0.0"},
    ),
)
