"""The same numbers sooner: the drafter's head as a CPU reads it fastest.  Nothing here is needed to understand the drafter.

`for_backend(draft_model)` gives a drafter its twins, as `gemma4.fast` gives a target its own; `tests/fast` holds them against
the reference.
"""

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from drafter.clustering import best_candidate, best_clusters, scatter_logits
from drafter.model import Drafter
from gemma4.fast import layer_for_backend, this_backend
from gemma4.fast.argmax import argmax
from gemma4.fast.memoize import memoize_by_array
from gemma4.fast.twin import twin_of


class FastDrafter(Drafter):
    """A twin of `Drafter` whose clustered head reads whole blocks."""

    blocks: nnx.Variable | None  # [clusters, size, d]: the table in the order of the clusters

    def logits(self, normed: Float[Array, "b d"]) -> Float[Array, "b v"]:
        if self.blocks is None:
            return super().logits(normed)
        return scatter_logits(*self._candidates(normed), self.config.text.vocab_size)

    def argmax(self, normed: Float[Array, "b d"]) -> Int[Array, " b"]:
        if self.blocks is not None:
            return best_candidate(*self._candidates(normed), self.config.text.vocab_size)
        return super().argmax(normed) if self.config.use_ordered_embeddings else argmax(self.dense_logits(normed))

    def _candidates(self, normed: Float[Array, "b d"]) -> tuple[Int[Array, "b c"], Float[Array, "b c"]]:
        assert self.blocks is not None
        return candidates_in_blocks(normed, self.blocks[...], *self.masked_embedding.clusters())


def for_backend(draft_model: Drafter, backend: str | None = None) -> Drafter:
    """The same drafter with the twins that suit `backend` (that on which JAX runs, unless given); as `gemma4.fast.for_backend`.

    The copy of the table is for CPUs alone.  It takes 134 MB for E2B in bfloat16.  On a GPU, which reads in parallel, a
    loop over clusters would be slower.
    """
    backend = backend or this_backend()
    blocks = None
    if backend == "cpu" and draft_model.config.use_ordered_embeddings:
        table, ordering = draft_model.embed_tokens.weight[...], draft_model.masked_embedding.token_ordering[...]
        blocks = nnx.Variable(table_in_blocks(table, ordering, draft_model.config.num_centroids))
    twin = twin_of(draft_model, FastDrafter, blocks=nnx.data(blocks))
    twin.layers = nnx.List([layer_for_backend(layer, backend) for layer in draft_model.layers])
    return twin


@functools.partial(jax.jit, static_argnames="num_centroids")
def in_blocks(
    table: Float[Array, "v d"], token_ordering: Int[Array, " v"], num_centroids: int
) -> Float[Array, "clusters size d"]:
    """The table's rows in the order of their clusters: those of one cluster, scattered over the table, become neighbours."""
    return table[token_ordering].reshape(num_centroids, -1, table.shape[1])


table_in_blocks = memoize_by_array(in_blocks)


def candidates_in_blocks(
    hidden: Float[Array, "b d"],
    blocks: Float[Array, "clusters size d"],
    centroids: Float[Array, "clusters d"],
    token_ordering: Int[Array, " v"],
    top_k: int,
) -> tuple[Int[Array, "b candidates"], Float[Array, "b candidates"]]:
    """The tokens of the best clusters, and their logits (float32), in a loop that reads each block where it is, uncopied."""
    clusters, tokens = best_clusters(hidden, centroids, token_ordering, top_k)

    def of_row(row_and_clusters: tuple[Array, Array]) -> Array:
        row, clusters = row_and_clusters

        def of_cluster(cluster: Array) -> Array:
            # XLA on CPU multiplies bfloat16 as float32.  The barrier keeps it from converting all blocks before the loop.
            # A row times a block: for the other order it would copy the block first.
            now, cluster = jax.lax.optimization_barrier((blocks, cluster))
            return row @ now[cluster].T

        return jax.lax.map(of_cluster, clusters).reshape(-1)

    # Not vmap, which would gather the blocks of all rows first: a copy.
    return tokens, jax.lax.map(of_row, (hidden, clusters)).astype("float32")
