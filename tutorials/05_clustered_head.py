# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · A vocabulary head at a fraction of the bytes
#
# *Which 512 of 2,048 tokens (or 4,096 of 262,144) are worth a multiplication?*
#
# **30 minutes. Before this:** 04, the drafter. **It explains** [clustering.py](../drafter/clustering.py). **Afterwards you
# can**
#
# - write a head that scores a quarter of the vocabulary, or a 64th, and nearly always finds the best token;
# - say what such a head costs in acceptance, and what it saves in bytes;
# - explain why the other tokens must have probability zero, exactly, and why the text may still contain them.
#
# A model's head multiplies a hidden state with the embedding of *every* token. In a large target that is a small part of the
# work. In a drafter it is most of it: E2B's drafter has layers of width 256, and a vocabulary of 262,144 tokens.
# The [clustered head](glossary.md) asks first which *groups* of tokens are worth a look.

# %%
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
import gemma4
from exercises import clustered_head as exercise
from figures import clustered_head as figures
from figures import style

# %%
style.use()
target, draft_model, tokenizer = decoding.load_pair()

# %% [markdown]
# ## What a dense head costs
#
# On nearly all machines a small model waits for its weights, so we count bytes: the table's rows that one draft reads, in
# bfloat16, two bytes a number. The clustered head reads one row for each cluster, the *centroid*, and then the rows of
# the tokens in the best clusters.
#
# **Predict:** E2B's drafter has 2,048 clusters of 128 tokens and searches 32. By what factor does it read less?


# %%
def head_bytes(config):
    """Of a dense and of a clustered head, for one draft."""
    row, vocabulary = 2 * config.text.hidden_size, config.text.vocab_size
    candidates = config.centroid_intermediate_top_k * vocabulary // config.num_centroids
    return row * vocabulary, row * (config.num_centroids + candidates)


sizes = {"this page's pair": head_bytes(draft_model.config), "E2B": head_bytes(drafter.PRESETS["E2B"])}
print({name: f"{dense / clustered:.1f} times less" for name, (dense, clustered) in sizes.items()})
figures.bytes_read(sizes)

# %% [markdown]
# *The picture: for both drafters the bytes that one draft reads, with a dense head (plain) and with the clustered one
# (dotted), on a logarithmic axis.*
#
# ## Words of a cluster
#
# All clusters have one size, and so they fit into one array: `token_ordering`, the token ids, cluster after cluster. Row
# *c* of its reshaped form is cluster *c*.
#
# **Predict:** what will the tokens of one cluster have in common?

# %%
table = np.asarray(draft_model.embed_tokens.weight[...])  # [2048, 128]
centroids, token_ordering, top_k = (np.asarray(each) for each in draft_model.masked_embedding.clusters())
members = token_ordering.reshape(len(centroids), -1)
head = *map(jnp.asarray, (table, centroids, token_ordering)), int(top_k)  # what the library's functions take
print(members.shape, "tokens,", top_k, "clusters are searched")
for cluster in (20, 25, 40, 45, 55, 60):
    print(f"{cluster}:", *[tokenizer.decode([token]).strip() for token in members[cluster][:11]])

# %% [markdown]
# Names with names, endings with endings, nouns with nouns: what a hidden state may call for together. Nobody sorted them.
# `drafter.cluster_vocabulary` made these clusters from the embeddings.
#
# Forwards, the ordering says which tokens are in a cluster. Often one needs the other direction: in which cluster is a token?

# %%
place = np.empty_like(token_ordering)
place[token_ordering] = np.arange(len(token_ordering))  # the inverse permutation
cluster_of = place // members.shape[1]
for word in (" Aaron", " sword", " LORD"):
    token = tokenizer.token_to_id(word.replace(" ", "Ġ"))
    print(f"{word!r} is token {token}, at place {place[token]} of the ordering, in cluster {cluster_of[token]}")
print("`token_ordering` read the wrong way round:", (token_ordering // members.shape[1])[:8], "right:", cluster_of[:8])

# %% [markdown]
# To mix up the two directions is an easy mistake. Both are permutations, all shapes fit, and the drafts are just bad.
#
# ## Real hidden states
#
# A head can be judged only on what it really gets to read. So we let the target read 40 texts, and the drafter make its first
# step at each of 64 places in each: 2,560 states, and beside each the target's distribution of the token to be drafted.


# %%
@jax.jit
def read(target, draft_model, texts):
    """What the drafter's head reads at the last 64 places of each text, and the target's probabilities there."""
    hidden, cache = target(texts, gemma4.init_cache(target.config, *texts.shape))
    places = jnp.broadcast_to(jnp.arange(texts.shape[1] - 64, texts.shape[1]), (len(texts), 64))
    keys_at = {kind: jnp.broadcast_to(jnp.arange(texts.shape[1]), texts.shape) for kind in target.config.donors}
    inputs = draft_model.attention_inputs(places, keys_at)  # places = committed tokens
    donors = drafter.share_cache(cache, target.config).donors
    states, _ = draft_model(target.embed_tokens(texts[:, -64:]), hidden[:, -65:-1], donors, inputs)
    return states, jax.nn.softmax(target.logits(hidden[:, -64:]))


# %%
chapters = json.loads((decoding.load.SHIPPED / "held_out.json").read_text(encoding="utf-8"))[:40]
ids = [[2, *encoding.ids][:80] for encoding in tokenizer.encode_batch(chapters, add_special_tokens=False)]
states, target_probs = (np.asarray(x).reshape(-1, x.shape[-1]) for x in read(target, draft_model, jnp.array(ids)))
dense = states @ table.T  # the logits of a dense head
best = dense.argmax(axis=1)
print(
    len(states),
    "states; the dense head's best token is the target's best in",
    f"{np.mean(best == target_probs.argmax(1)):.2f}",
)

# %% [markdown]
# ## One draft, by hand
#
# Three lines: score the centroids, take the best clusters, score their tokens. Everything else stays at −∞.

# %%
state = states[1000]
scores = centroids @ state
searched = np.argsort(-scores)[:top_k]
candidates = members[searched].ravel()
logits = np.full(len(table), -np.inf)
logits[candidates] = table[candidates] @ state
library = drafter.clustered_logits(jnp.asarray(state)[None], *head)[0]
print(np.isfinite(logits).sum(), "tokens scored; equal to the library's:", np.allclose(logits, library, atol=1e-4))
found, of_all = (tokenizer.decode([each.argmax()]) for each in (logits, dense[1000]))
print(f"best of all: {of_all!r}, found: {found!r}")
figures.cells(scores, searched, cluster_of[best[1000]])

# %% [markdown]
# *The picture: 64 cells, one for each cluster, dark for a high score of its centroid. The 16 that are searched are outlined.
# The star marks the cluster of the best token of all 2,048, which a dense head would find.*
#
# ## How often is the best token found?
#
# The clustered head finds the dense head's best token if its cluster is among the first *k*. That share is the **recall**.
# All we need is the rank of one cluster among 64.
#
# **Predict:** the best cluster alone holds 32 tokens, one in 64. In which share of the states is the best token in it? And if
# the tokens were put into clusters at random?


# %%
def recall(centroids, ordering):
    """For each k from 1 to all: in which share of the states the best token is in the k best clusters."""
    scores = states @ centroids.T
    own = np.argsort(ordering)[best] // (len(ordering) // len(centroids))
    rank = (scores > scores[np.arange(len(scores)), own][:, None]).sum(axis=1)
    return np.array([np.mean(rank < k) for k in range(1, len(centroids) + 1)])


def means(ordering):
    return table[ordering].reshape(len(centroids), -1, table.shape[1]).mean(axis=1)


# %%
at_random = np.random.default_rng(0).permutation(len(table))
anew = drafter.cluster_vocabulary(table, len(centroids), sweeps=3)
recalls = {
    "as trained": recall(centroids, token_ordering),
    "the same clusters, means as centroids": recall(means(token_ordering), token_ordering),
    "clusters made anew": recall(np.asarray(anew.centroids), np.asarray(anew.token_ordering)),
    "clusters at random": recall(means(at_random), at_random),
}
for name, each in recalls.items():
    print(f"{name:38}", *[f"k = {k}: {each[k - 1]:.3f}" for k in (1, 4, 16)])
figures.over_searched(recalls, "recall", int(top_k))

# %% [markdown]
# *The picture: recall over the number of searched clusters, for four ways to make them. The hairline is the drafter's own
# number, 16.*
#
# Random clusters find the best token in half of the states with 16: their centroids are nearly alike. Clusters made from the
# embeddings find it almost always, and training makes the centroids better still. They learn to score a cluster by its *best*
# token, which is not what a mean does: with a single cluster the trained head is right about twice as often as the new one.
#
# ## What it costs in drafts
#
# A missed best token is one thing. What counts is acceptance: of greedy drafts, the share that is the target's choice, and of
# sampled ones Σ min(*p*, *q*).
#
# **Predict:** 16 of 64 clusters find the best token nearly always. Is the acceptance of *sampled* drafts as little affected?


# %%
def draft_probs(k):
    """The clustered head's distribution with k clusters, at temperature 1."""
    rank = np.argsort(np.argsort(-states @ centroids.T, axis=1), axis=1)
    kept = np.where(rank[:, cluster_of] < k, dense, -np.inf)
    probs = np.exp(kept - kept.max(axis=1, keepdims=True))
    return probs / probs.sum(axis=1, keepdims=True)


at = [1, 2, 4, 8, 16, 32, 64]
greedy, sampled = np.full((2, 64), np.nan)
for k in at:
    probs = draft_probs(k)
    greedy[k - 1] = np.mean(probs.argmax(axis=1) == target_probs.argmax(axis=1))
    sampled[k - 1] = np.minimum(probs, target_probs).sum(axis=1).mean()

# %%
for k in at:
    print(f"{k:2} clusters: greedy {greedy[k - 1]:.3f}, sampled {sampled[k - 1]:.3f}")
figures.over_searched({"greedy drafts": greedy, "sampled drafts": sampled}, "acceptance of a draft", int(top_k))

# %% [markdown]
# *The picture: acceptance of one draft over the number of searched clusters, greedy and sampled; 64 clusters are the dense
# head.*
#
# Greedy drafts lose nothing that one could measure. Of the sampled ones, the target accepts one in a hundred less: it gives
# the tokens outside a little probability each, and no draft ever proposes them.
#
# ## Why minus infinity
#
# transformers 5.22.2 fills the other tokens with the smallest score found, minus 1. The best token is the same. But a
# distribution made from these scores is another one:

# %%
kept = draft_probs(int(top_k)) > 0
lowest = np.where(kept, dense, np.inf).min()  # over the whole batch, as there
for name, fill in (("minus infinity", -np.inf), ("the smallest score, minus 1", lowest - 1)):
    filled = np.where(kept, dense, fill)
    probs = np.exp(filled - filled.max(axis=1, keepdims=True))
    outside = np.where(kept, 0, probs).sum(axis=1) / probs.sum(axis=1)
    print(f"{name:28} probability outside: mean {outside.mean():.1e}, most {outside.max():.1e}")

# %% [markdown]
# Small here, but wrong in kind: the smallest score is taken over the *batch*, so one text's distribution depends on the texts
# beside it. [Acceptance](../decoding/stages/accept.py) needs the distribution that the draft was really drawn from. A head
# with zeros is a proper distribution like any other, and the residual max(*p* − *q*, 0) gives the tokens outside all they are
# due.
#
# ## Milliseconds
#
# Last, the clock, with a table of E2B's size: 262,144 rows of 256 numbers. The numbers in it do not matter for the time.


# %% tags=["timing"]
def milliseconds(head, *arguments):
    head(*arguments).block_until_ready()  # compile
    start = time.perf_counter()
    for _ in range(5):
        head(*arguments).block_until_ready()
    return (time.perf_counter() - start) / 5 * 1e3


vocabulary, clusters, width, k = 262_144, 2048, 256, 32
large, centers = (jax.random.normal(jax.random.key(0), (rows, width)) for rows in (vocabulary, clusters))
one, ordering = large[:1], jax.random.permutation(jax.random.key(1), vocabulary)
dense_ms = milliseconds(jax.jit(lambda x, table: jnp.argmax(x @ table.T, axis=-1)), one, large)
clustered = jax.jit(drafter.clustered_argmax, static_argnames="top_k")
clustered_ms = milliseconds(lambda *given: clustered(*given, top_k=k), one, large, centers, ordering)
print(f"dense {dense_ms:.1f} ms, clustered {clustered_ms:.1f} ms, for one draft")

# %% [markdown]
# ## What you saw
#
# - A head's cost is the rows that it reads. Two questions, which clusters and which tokens, read far fewer rows than one.
# - Clusters of one size make the whole structure one permutation; mind its direction.
# - With a quarter of the clusters the best token is found in 99 states of 100, and training the centroids helps most where
#   few are searched.
# - Greedy drafts lose nothing, sampled ones a little acceptance. The text loses nothing in any case.
# - Tokens outside get probability 0, because acceptance has to know what the draft was drawn from.

# %%
found = np.array(
    [token in members[row] for token, row in zip(best, np.argsort(-states @ centroids.T)[:, :top_k], strict=True)]
)
ours = np.asarray(drafter.clustered_argmax(jnp.asarray(states), *head))
assert (ours[found] == best[found]).all() and (ours[~found] != best[~found]).all()
assert np.isclose(found.mean(), recalls["as trained"][top_k - 1])

# %% [markdown]
# ## Exercises
#
# **5.1 Predict.** If this page's head searched *all* 64 clusters, what would the recall be, and how many multiplications
# would one draft take? (A dense head takes 2,048 · 128.)

# %%
recall_of_all, multiplications = None, None
exercise.check_1(recall_of_all, multiplications)

# %% [markdown]
# **5.2 Change the code.** Put the most frequent 32 tokens into cluster 0, the next 32 into cluster 1, and so on, with the
# means as centroids. `frequency` counts the tokens of the texts. Measure the recall with 16 clusters. Is it better than
# random, and why?

# %%
every_id = np.concatenate([each.ids for each in tokenizer.encode_batch(chapters, add_special_tokens=False)])
frequency = np.bincount(every_id, minlength=len(table))
by_frequency = None  # an ordering of the 2,048 tokens
recall_by_frequency = None  # recall(…)[15]
exercise.check_2(by_frequency, recall_by_frequency, frequency, states, table)

# %% [markdown]
# **5.3 Explain.** A token outside the searched clusters has *q* = 0, so no draft can be that token. Can the text contain it
# all the same? Where in a round does it come from? Name all possible sources.

# %%
text_can_contain_it, sources = None, []  # of "draft", "correction", "bonus token"
exercise.check_3(text_can_contain_it, sources)

# %% [markdown]
# The answers are in [answers/05_clustered_head.py](answers/05_clustered_head.py).
#
# **Next:** 06, accept and reject, which proves that any *q* gives the right text, this one with its zeros, too. The file to
# read is [clustering.py](../drafter/clustering.py); [speed.md](reference/speed.md) measures the head in whole rounds.
