"""The MTP drafter: one draft step on one screen.

    x       = pre_projection([embedding ; hidden])      the target's scaled embedding first, its hidden state second
    x       = the layers, queries only, over the target's K/V; every step of a round has the same position
    y       = norm(x)
    logits  = head(y)                                   dense (tied table) or clustered
    next_hidden = post_projection(y)                    the hidden input of the next draft step

Source: `modeling_gemma4_assistant.py`, transformers 5.22.2.  Builds on `gemma4`'s layers, `config.py`, `shared_cache.py` and
`clustering.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from drafter.clustering import clustered_argmax, clustered_logits
from drafter.config import TRANSFORMERS, Config
from drafter.shared_cache import SharedCache
from gemma4.cache import LayerKV, slot_positions
from gemma4.config import SLIDING
from gemma4.functional import argmax, attention_mask, rope_cos_sin
from gemma4.layers import AttentionInputs, Embedding, Linear, RMSNorm, Tap, no_tap, scoped
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

    def __call__(
        self,
        embedding: Float[Array, "b t backbone"],
        hidden: Float[Array, "b t backbone"],
        donors: dict[str, LayerKV],
        inputs: dict[str, AttentionInputs],
        tap: Tap = no_tap,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t backbone"]]:
        """What the head reads, and the hidden states of the next step.

        t independent steps at once: 1 in decoding, one for each anchor in `training.py`.
        """
        x = tap("pre_projection", self.pre_projection(jnp.concatenate([embedding, hidden], axis=-1)))
        for i, layer in enumerate(self.layers):
            kind = self.config.text.layer_types[i]
            with jax.named_scope(f"layers.{i}"):
                x, _ = layer(x, None, donors[kind], inputs[kind], scoped(tap, f"layers.{i}"))
        normed = tap("norm", self.norm(x))
        return normed, tap("post_projection", self.post_projection(normed))

    def attention_inputs(
        self, lengths: Int[Array, "b t"], key_positions: dict[str, Int[Array, "b s"]]
    ) -> dict[str, AttentionInputs]:
        """Position and window of a draft step, where `lengths` tokens are committed and each type's slots hold `key_positions`.

        The same for every step of a round, because nothing is written in between: the position is constant.
        """
        text, is_transformers = self.config.text, self.config.convention == TRANSFORMERS
        last = lengths - 1  # the newest committed position; the token to continue from is one later
        # The two conventions of `Config.convention`.  The position turns the query (RoPE).  The mask counts committed keys
        # alone, so its query is the newest of them in both.
        position = lengths if is_transformers else last
        window = text.sliding_window + 1 if is_transformers else text.sliding_window
        return {
            kind: AttentionInputs(
                start=None,
                cos_sin=rope_cos_sin(position, *text.rope(kind)),
                mask=attention_mask(last, key_positions[kind], window if kind == SLIDING else None),
            )
            for kind in sorted(set(text.layer_types))
        }

    def logits(self, normed: Float[Array, "b d"]) -> Float[Array, "b v"]:
        """Scores of the next token, float32, no soft cap; -inf outside the best clusters of a clustered head."""
        if self.config.use_ordered_embeddings:
            return clustered_logits(normed, self.embed_tokens.weight[...], *self.masked_embedding.clusters())
        return self.dense_logits(normed)

    def dense_logits(self, normed: Float[Array, "*batch d"]) -> Float[Array, "*batch v"]:
        return (normed @ self.embed_tokens.weight[...].T).astype(jnp.float32)

    def argmax(self, normed: Float[Array, "b d"]) -> Int[Array, " b"]:
        """The greedy draft token: argmax of `logits`."""
        if self.config.use_ordered_embeddings:
            return clustered_argmax(normed, self.embed_tokens.weight[...], *self.masked_embedding.clusters())
        return argmax(self.dense_logits(normed))


class ClusteredHead(nnx.Module):
    """Centroids (a weight) and the token ids of each cluster (not a weight: an optimizer must never touch them)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.top_k = config.centroid_intermediate_top_k
        self.centroids = Linear(config.text.hidden_size, config.num_centroids, rngs=rngs, dtype=dtype)
        self.token_ordering = nnx.Variable(jnp.arange(config.text.vocab_size, dtype=jnp.int32))

    def clusters(self) -> tuple[Float[Array, "clusters d"], Int[Array, " v"], int]:
        """Centroids, token ordering and top_k: what the functions of `clustering.py` take after the table."""
        return self.centroids.weight[...].T, self.token_ordering[...], self.top_k


def forward(
    draft_model: Drafter,
    embedding: Float[Array, "b backbone"],
    hidden: Float[Array, "b backbone"],
    shared: SharedCache,
    *,
    tap: Tap | None = None,
) -> tuple[Float[Array, "b v"], Float[Array, "b backbone"]]:
    """One draft step: logits of the next token, float32, and the hidden input of the step after it.

    embedding: the target's scaled embedding of the token to continue from.
    hidden:    the target's hidden state (after its final norm) that predicted that token; in later steps, what this returned.
    tap:       called as tap(name, value) at every named point; the step then runs unjitted.
    Errors:    ValueError if the widths are not the target's, or inputs and cache differ in batch.
    """
    if tap is None:
        return _forward(draft_model, embedding, hidden, shared)
    normed, next_hidden = step(draft_model, embedding, hidden, shared, tap)
    return tap("logits", draft_model.logits(normed)), next_hidden


def step(
    draft_model: Drafter,
    embedding: Float[Array, "b backbone"],
    hidden: Float[Array, "b backbone"],
    shared: SharedCache,
    tap: Tap = no_tap,
) -> tuple[Float[Array, "b d"], Float[Array, "b backbone"]]:
    """`forward` up to the head: the states that `Drafter.logits` and `Drafter.argmax` read, and the next step's hidden state.

    Errors: as `forward`.
    """
    width, batch = draft_model.config.backbone_hidden_size, shared.length.shape[0]
    for name, value in (("embedding", embedding), ("hidden", hidden)):
        if value.shape != (batch, width):
            raise ValueError(
                f"{name}: expected shape ({batch}, {width}) (the cache's batch, the target's width), got {value.shape}"
            )
    key_positions = {kind: slot_positions(shared.length - 1, kv.capacity) for kind, kv in shared.donors.items()}
    inputs = draft_model.attention_inputs(shared.length[:, None], key_positions)
    normed, next_hidden = draft_model(embedding[:, None], hidden[:, None], shared.donors, inputs, tap)
    return normed[:, 0], next_hidden[:, 0]


@jax.jit
def _forward(
    draft_model: Drafter, embedding: jax.Array, hidden: jax.Array, shared: SharedCache
) -> tuple[jax.Array, jax.Array]:
    normed, next_hidden = step(draft_model, embedding, hidden, shared)
    return draft_model.logits(normed), next_hidden
