"""Embedding scale, and the per-layer inputs of E2B and E4B."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

SCALE = "sqrt(hidden_size) rounded to the dtype of the table, and no other."

MUTANTS = (
    Mutant(
        name="embedding-scale-rounded",
        bugs=("B96",),
        rank=21,
        shows_at="E2B/forward/embedding",
        effect="wrong probabilities",
        what="In a float32 model, sqrt(hidden_size) is rounded to bfloat16.",
        seen_in=(
            Seen("transformers", "https://github.com/huggingface/transformers/pull/37109"),
            Seen("transformers", "https://github.com/huggingface/transformers/issues/38702"),
        ),
        fix=SCALE,
        function="gemma4.layers.Embedding.__call__",
        change={"jnp.asarray(self.scale, table.dtype)": "jnp.asarray(self.scale, jnp.bfloat16).astype(table.dtype)"},
    ),
    Mutant(
        name="embedding-not-scaled",
        rank=21,
        shows_at="E2B/forward/embedding",
        what="Embeddings are not multiplied by sqrt(width).",
        fix=SCALE,
        function="gemma4.layers.Embedding.__call__",
        change={"table[tokens] * jnp.asarray(self.scale, table.dtype)": "table[tokens]"},
    ),
    Mutant(
        name="per-layer-table-not-scaled",
        rank=15,
        shows_at="E2B/forward/per_layer_inputs",
        what="Vectors of the per-layer table are not multiplied by the square root of their width.",
        fix="Multiply by sqrt(hidden_size_per_layer_input), as the embedding by sqrt(hidden_size).",
        function="gemma4.per_layer_embeddings.PerLayerEmbeddings.__call__",
        change={"self.embed_tokens_per_layer(tokens)": "self.embed_tokens_per_layer.weight[...][tokens]"},
    ),
    Mutant(
        name="per-layer-table-left-out",
        rank=15,
        shows_at="E2B/forward/per_layer_inputs",
        what="Per-layer inputs come from the projection alone: the table is not read.",
        fix="(context + identity) / sqrt(2).",
        function="gemma4.per_layer_embeddings.PerLayerEmbeddings.__call__",
        change={"scaled(context + identity, 2**-0.5)": "context"},
    ),
    Mutant(
        name="per-layer-projection-left-out",
        rank=15,
        shows_at="E2B/forward/per_layer_inputs",
        what="Per-layer inputs come from the table alone: the projection of the embedding is not added.",
        fix="(context + identity) / sqrt(2).",
        function="gemma4.per_layer_embeddings.PerLayerEmbeddings.__call__",
        change={"scaled(context + identity, 2**-0.5)": "identity"},
    ),
    Mutant(
        name="per-layer-sum-not-halved",
        rank=15,
        shows_at="E2B/forward/per_layer_inputs",
        effect="nothing",
        what="Table vector and projection are added without 1/sqrt(2).  The norm after the gate cancels it.",
        fix="(context + identity) / sqrt(2).",
        function="gemma4.per_layer_embeddings.PerLayerEmbeddings.__call__",
        change={"scaled(context + identity, 2**-0.5)": "context + identity"},
    ),
    Mutant(
        name="per-layer-gate-without-gelu",
        rank=15,
        shows_at="E2B/forward/layers.0.per_layer_projection",
        what="The per-layer gate is linear.",
        fix="gelu(gate(x)) * per-layer input.",
        function="gemma4.model.DecoderLayer.__call__",
        change={"gelu(self.per_layer_input_gate(x))": "self.per_layer_input_gate(x)"},
    ),
)
