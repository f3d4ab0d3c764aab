"""Train a drafter for a frozen target.

Nearly every position of a text is an anchor: at t the drafter is in a round whose newest token is t, with tokens 0 .. t-1
committed; it sees only their K/V and drafts `steps` tokens.  All anchors train in parallel, because a mask hides later K/V from
each.  In step k the drafter reads its own hidden state of step k-1 and the text's token, and learns the target's distribution
after that token (cross-entropy, which is Kullback-Leibler divergence up to a constant).

Alignment, for an anchor at index t: step 1 gets the embedding of token t and the target's hidden state t-1, and learns the
target's distribution of token t+1 (position t); step k gets the embedding of token t+k-1 and its own hidden state, and learns
position t+k-1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from drafter.clustering import cluster_vocabulary
from drafter.config import Config
from drafter.model import Drafter
from drafter.shared_cache import share_cache
from gemma4.cache import init_cache
from gemma4.checkpoints.params import named_params, with_params
from gemma4.model import Gemma4


class Teacher(NamedTuple):
    """The frozen target's outputs for a batch of texts, at positions 0..t-1."""

    embedding: Float[Array, "b t backbone"]
    hidden: Float[Array, "b t backbone"]
    probs: Float[Array, "b t v"]
    donors: dict  # layer type -> LayerKV, slot = position


def teach(target: Gemma4, tokens: Int[Array, "b t"]) -> Teacher:
    batch, time = tokens.shape
    hidden, cache = target(tokens, init_cache(target.config, batch, time))
    probs = jax.nn.softmax(target.logits(hidden), axis=-1)
    return Teacher(target.embed_tokens(tokens), hidden, probs, share_cache(cache, target.config).donors)


def unroll(
    draft_model: Drafter, teacher: Teacher, steps: int
) -> list[tuple[Float[Array, "b a d"], Float[Array, "b a v"]]]:
    """For each draft step, the states that the drafter's head reads at every anchor, and the distributions to learn.

    Errors: ValueError unless 1 <= steps < t, which leaves an anchor.
    """
    batch, time, _ = teacher.hidden.shape
    if not 1 <= steps < time:
        raise ValueError(f"steps: expected 1 or more, and fewer than the text's {time} tokens, got {steps}")
    anchors = time - steps  # t = 1 .. time - steps: the last anchor's last step learns the last position
    lengths = jnp.broadcast_to(jnp.arange(1, anchors + 1), (batch, anchors))
    positions = jnp.broadcast_to(jnp.arange(time), (batch, time))
    inputs = draft_model.attention_inputs(lengths, {kind: positions for kind in teacher.donors})
    hidden, out = teacher.hidden[:, :anchors], []
    for step in range(1, steps + 1):
        normed, hidden = draft_model(teacher.embedding[:, step : step + anchors], hidden, teacher.donors, inputs)
        out.append((normed, teacher.probs[:, step : step + anchors]))
    return out


def draft_loss(draft_model: Drafter, teacher: Teacher, steps: int) -> Float[Array, ""]:
    """Mean cross-entropy in nats, over anchors and steps, of the head against the target's distribution.

    With a clustered head, also that of the centroids against the probability of each cluster.  That part trains the centroids
    alone, so that the head is trained as without clusters.  Errors: as `unroll`.
    """
    total = jnp.zeros(())
    for normed, probs in unroll(draft_model, teacher, steps):
        total += cross_entropy(probs, draft_model.dense_logits(normed))
        if draft_model.config.use_ordered_embeddings:
            centroids, ordering, _ = draft_model.masked_embedding.clusters()
            mass = probs[..., ordering].reshape(*probs.shape[:-1], centroids.shape[0], -1).sum(axis=-1)
            total += cross_entropy(mass, jax.lax.stop_gradient(normed) @ centroids.T)
    return total / steps


def expected_acceptance(draft_model: Drafter, teacher: Teacher, steps: int) -> Float[Array, " {steps}"]:
    """For each draft step, how often the target accepts its draft at temperature 1, if it is reached: mean of sum min(p, q).

    Along a given text, with the dense head.  Source: Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.5.
    Errors: as `unroll`.
    """

    def share(normed: Float[Array, "b a d"], probs: Float[Array, "b a v"]) -> Float[Array, ""]:
        return jnp.minimum(probs, jax.nn.softmax(draft_model.dense_logits(normed), axis=-1)).sum(axis=-1).mean()

    return jnp.stack([share(*step) for step in unroll(draft_model, teacher, steps)])


def cross_entropy(probs: Float[Array, "*batch v"], logits: Float[Array, "*batch v"]) -> Float[Array, ""]:
    return -jnp.mean(jnp.sum(probs * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def init_drafter(config: Config, target: Gemma4, seed: int = 0) -> Drafter:
    """A drafter to start from: its head is the target's, projected onto its principal components.

    Components of the target's table times its final norm, which is what the target's head multiplies; clusters, if any, are
    built from the same table rows.  Errors: ValueError if the two do not fit each other.
    """
    config.check_fits(target.config)
    draft_model = Drafter(config, rngs=nnx.Rngs(seed))
    rows = np.asarray(target.embed_tokens.weight[...] * target.norm.weight[...], np.float32)
    principal = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, : config.text.hidden_size]
    table = rows @ principal
    start = {"embed_tokens.weight": jnp.asarray(table)}
    if config.use_ordered_embeddings:
        centroids, ordering = cluster_vocabulary(table, config.num_centroids)
        start["masked_embedding.centroids.weight"] = centroids.T
        start["masked_embedding.token_ordering"] = ordering
    return with_params(draft_model, start)


def trainable(draft_model: Drafter) -> dict[str, jax.Array]:
    """All weights; not the token ordering, which is an index (mlx-vlm #1194 let an optimizer turn it into floats)."""
    return {
        name: value for name, value in named_params(draft_model).items() if jnp.issubdtype(value.dtype, jnp.floating)
    }
