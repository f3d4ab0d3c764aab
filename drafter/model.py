"""The MTP drafter: one draft step on one screen.

    x       = pre_projection([embedding ; hidden])      the target's scaled embedding first, its hidden row second
    x       = the layers, queries only, over the target's K/V, all at one constant position
    y       = norm(x)
    logits  = head(y)                                   dense (tied table) or clustered
    hidden' = post_projection(y)                        the hidden input of the next draft step

Source: `modeling_gemma4_assistant.py`, transformers 5.22.2.  Reads `gemma4`'s layers, `config.py`, `shared_cache.py` and
`clustering.py`.
"""

import copy

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from drafter.clustering import clustered_argmax, clustered_logits, in_blocks
from drafter.config import TRANSFORMERS, Config
from drafter.shared_cache import SharedCache
from gemma4.cache import LayerKV, slot_positions
from gemma4.config import SLIDING
from gemma4.functional import argmax, rope_angles, visible
from gemma4.kept import kept, transposed
from gemma4.layers import Embedding, Linear, Place, RMSNorm, Tap, matmul, no_tap, scoped
from gemma4.model import DecoderLayer


class Drafter(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        text, width, backbone = config.text, config.text.hidden_size, config.backbone_hidden_size
        self.pre_projection = Linear(2 * backbone, width, rngs=rngs, dtype=dtype)
        self.layers = nnx.List([DecoderLayer(text, i, rngs=rngs, dtype=dtype) for i in range(text.num_hidden_layers)])
        self.norm = RMSNorm(width, text.rms_norm_eps, dtype=dtype)
        self.post_projection = Linear(width, backbone, rngs=rngs, dtype=dtype)
        self.embed_tokens = Embedding(text.vocab_size, width, rngs=rngs, dtype=dtype)  # only ever used as the head
        if config.use_ordered_embeddings:
            self.masked_embedding = ClusteredHead(config, rngs=rngs, dtype=dtype)
        self.cpu_head = nnx.data(None)  # see `for_cpu`

    def __call__(
        self,
        embedding: Float[Array, "b t backbone"],
        hidden: Float[Array, "b t backbone"],
        donors: dict[str, LayerKV],
        places: dict[str, Place],
        tap: Tap = no_tap,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t backbone"]]:
        """The rows that the head reads, and the hidden rows of the next step.  t independent steps at once (1 in use)."""
        x = tap("pre_projection", self.pre_projection(jnp.concatenate([embedding, hidden], axis=-1)))
        for i, layer in enumerate(self.layers):
            kind = self.config.text.layer_types[i]
            with jax.named_scope(f"layers.{i}"):
                x, _ = layer(x, None, donors[kind], places[kind], scoped(tap, f"layers.{i}"))
        normed = tap("norm", self.norm(x))
        return normed, tap("post_projection", self.post_projection(normed))

    def places(self, lengths: Int[Array, "b t"], rows: dict[str, Int[Array, "b s"]]) -> dict[str, Place]:
        """Where drafts stand when `lengths` tokens are committed and the slots of each type hold positions `rows`.

        The same for every step of a round: nothing is written in between.
        """
        text, is_transformers = self.config.text, self.config.convention == TRANSFORMERS
        last = lengths - 1  # the newest committed position; the token to continue from stands one later
        position = last + 1 if is_transformers else last
        window = text.sliding_window + 1 if is_transformers else text.sliding_window
        return {
            kind: Place(
                start=None,
                angles=rope_angles(position, *text.rope(kind)),
                seen=visible(last, rows[kind], window if kind == SLIDING else None),
            )
            for kind in sorted(set(text.layer_types))
        }

    def logits(self, normed: Float[Array, "b d"]) -> Float[Array, "b v"]:
        """Scores of the next token, float32, no soft cap; -inf outside the chosen clusters of a clustered head."""
        if self.config.use_ordered_embeddings:
            return self._clustered(clustered_logits, normed)
        return self.dense_logits(normed)

    def dense_logits(self, normed: Float[Array, "*batch d"]) -> Float[Array, "*batch v"]:
        head = self.embed_tokens.weight[...].T if self.cpu_head is None else self.cpu_head[...]
        return matmul(normed, head).astype(jnp.float32)

    def argmax(self, normed: Float[Array, "b d"]) -> Int[Array, " b"]:
        """The greedy draft token: argmax of `logits`."""
        if self.config.use_ordered_embeddings:
            return self._clustered(clustered_argmax, normed)
        return argmax(self.dense_logits(normed))

    def _clustered(self, score, normed):
        head = self.masked_embedding
        blocks = None if head.cpu_blocks is None else head.cpu_blocks[...]
        return score(normed, self.embed_tokens.weight[...], *head.clusters(), blocks)

    def for_cpu(self) -> "Drafter":
        """The same weights, and beside them the table laid out as the head reads it.  To run on a CPU, not to be saved.

        Only there: the copy takes 134 MB for E2B's drafter in bfloat16, and on a GPU, where reads run side by side, a loop
        over clusters would make them wait for each other.
        """
        table, twin = self.embed_tokens.weight[...], copy.copy(self)  # which shares all modules
        if self.config.use_ordered_embeddings:
            _, ordering, _ = self.masked_embedding.clusters()
            twin.masked_embedding = copy.copy(self.masked_embedding)
            twin.masked_embedding.cpu_blocks = nnx.Variable(_in_blocks(table, ordering, self.config.num_centroids))
        elif table.dtype == jnp.float32:  # XLA would turn a copy in bfloat16 into float32 at every call
            twin.cpu_head = nnx.Variable(transposed(table))
        return twin


_in_blocks = kept(in_blocks)


class ClusteredHead(nnx.Module):
    """Centroids (a weight) and the token ids of each cluster (no weight: an optimizer must never touch them)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.top_k = config.centroid_intermediate_top_k
        self.centroids = Linear(config.text.hidden_size, config.num_centroids, rngs=rngs, dtype=dtype)
        self.token_ordering = nnx.Variable(jnp.arange(config.text.vocab_size, dtype=jnp.int32))
        self.cpu_blocks = nnx.data(None)  # see `Drafter.for_cpu`

    def clusters(self) -> tuple[Float[Array, "clusters d"], Int[Array, " v"], int]:
        return self.centroids.weight[...].T, self.token_ordering[...], self.top_k


def forward(
    drafter: Drafter,
    embedding: Float[Array, "b backbone"],
    hidden: Float[Array, "b backbone"],
    shared: SharedCache,
    *,
    tap: Tap | None = None,
) -> tuple[Float[Array, "b v"], Float[Array, "b backbone"]]:
    """One draft step: logits of the next token [b, vocab] float32, and the hidden input of the step after it [b, d_target].

    embedding: the target's scaled embedding of the token to continue from.
    hidden:    the target's hidden row (after its final norm) that predicted that token; in later steps, what this returned.
    tap:       called as tap(name, value) at every named point; the step then runs unjitted.
    Errors:    ValueError if the widths are not the target's, or rows and cache differ in batch.
    """
    if tap is None:
        return _forward(drafter, embedding, hidden, shared)
    normed, chained = step(drafter, embedding, hidden, shared, tap)
    return tap("logits", drafter.logits(normed)), chained


def step(
    drafter: Drafter,
    embedding: Float[Array, "b backbone"],
    hidden: Float[Array, "b backbone"],
    shared: SharedCache,
    tap: Tap = no_tap,
) -> tuple[Float[Array, "b d"], Float[Array, "b backbone"]]:
    """`forward` up to the head: the rows that `Drafter.logits` and `Drafter.argmax` read, and the next step's hidden.

    Errors: as `forward`.
    """
    width, batch = drafter.config.backbone_hidden_size, shared.length.shape[0]
    for name, value in (("embedding", embedding), ("hidden", hidden)):
        if value.shape != (batch, width):
            raise ValueError(
                f"{name}: expected shape ({batch}, {width}) (the cache's batch, the target's width), got {value.shape}"
            )
    rows = {kind: slot_positions(shared.length - 1, kv.capacity) for kind, kv in shared.donors.items()}
    places = drafter.places(shared.length[:, None], rows)
    normed, chained = drafter(embedding[:, None], hidden[:, None], shared.donors, places, tap)
    return normed[:, 0], chained[:, 0]


@jax.jit
def _forward(drafter, embedding, hidden, shared):
    normed, chained = step(drafter, embedding, hidden, shared)
    return drafter.logits(normed), chained
