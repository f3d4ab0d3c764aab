"""The drafter's inputs: the embedding, its order with the hidden state, and the position."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

CONSTANT = "One position for the whole round, because nothing is written between its steps."

MUTANTS = (
    Mutant(
        name="drafter-embedding-not-scaled",
        bugs=("B77",),
        rank=16,
        shows_at="E2B/draft/block/tokens",
        effect="fewer accepted drafts",
        what="The drafter gets the target's embedding without the factor sqrt(hidden_size).",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/5f6de951071b71507d803a7b6c9c65b331b27044"),
            Seen("Rapid-MLX", "https://github.com/raullenchai/Rapid-MLX/commit/4c901fea"),
        ),
        fix="Give it the scaled embedding, as the target's own first layer gets it.",
        function="decoding.stages.draft.draft",
        change={"target.embed_tokens(token)": "target.embed_tokens.weight[...][token]"},
    ),
    Mutant(
        name="hidden-before-embedding",
        bugs=("B78",),
        rank=16,
        shows_at="E2B/draft/step0/pre_projection",
        effect="fewer accepted drafts",
        what="pre_projection reads [hidden ; embedding].",
        seen_in=(
            Seen("Rapid-MLX", "https://github.com/raullenchai/Rapid-MLX/commit/4c901fea"),
            Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/pull/22738"),
        ),
        fix="[embedding ; hidden], the embedding first.",
        function="drafter.model.Drafter.__call__",
        change={"jnp.concatenate([embedding, hidden], axis=-1)": "jnp.concatenate([hidden, embedding], axis=-1)"},
    ),
    Mutant(
        name="drafter-at-position-zero",
        bugs=("B79",),
        rank=16,
        shows_at="E2B/draft/step0/layers.0.query",
        effect="fewer accepted drafts",
        what="The position is the length of the drafter's own cache, which is always empty.",
        seen_in=(Seen("ik_llama.cpp", "https://github.com/ikawrakow/ik_llama.cpp/pull/1781"),),
        fix="Count the target's committed tokens.",
        function="drafter.model.Drafter.attention_inputs",
        change={"position = lengths if is_transformers else last": "position = jnp.zeros_like(last)"},
    ),
    Mutant(
        name="drafter-position-advances",
        bugs=("B80",),
        rank=16,
        shows_at="E2B/draft/block/tokens",
        effect="fewer accepted drafts",
        what="Length and position grow with every draft step, as those of a drafter with a cache of its own do.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/b325a670302734f4104c2d916677bc047f30543c"),
        ),
        fix=CONSTANT,
        function="decoding.stages.draft.draft",
        change={
            "token, hidden = newest": "token, hidden, i = newest",
            "hidden, shared)": "hidden, shared._replace(length=shared.length + i))",
            "return (token, hidden), Draft": "return (token, hidden, i + 1), Draft",
            "one_step, (token, hidden), uniforms": "one_step, (token, hidden, jnp.int32(0)), uniforms",
        },
    ),
    Mutant(
        name="the-other-convention",
        bugs=("B80",),
        rank=16,
        shows_at="E2B/draft/step0/layers.0.query",
        effect="fewer accepted drafts",
        what="The drafter's position and window follow the other convention in use.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/b325a670302734f4104c2d916677bc047f30543c"),
        ),
        fix="Not wrong in itself: compare with the other convention's cases (drafter.Config.convention).",
        function="drafter.model.Drafter.attention_inputs",
        change={"self.config.convention == TRANSFORMERS": "self.config.convention != TRANSFORMERS"},
    ),
    Mutant(
        name="drafter-position-one-late",
        bugs=("B80",),
        rank=16,
        shows_at="E2B/draft/step0/layers.0.query",
        effect="fewer accepted drafts",
        what="The drafter's queries are rotated by one position too many.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/b325a670302734f4104c2d916677bc047f30543c"),
        ),
        fix="Position n, that of the newest token (transformers), or n - 1 (vLLM).",
        function="drafter.model.Drafter.attention_inputs",
        change={
            "position = lengths if is_transformers else last": "position = lengths + 1 if is_transformers else lengths"
        },
    ),
    Mutant(
        name="drafter-position-one-early",
        bugs=("B80",),
        rank=16,
        shows_at="E2B/draft/step0/layers.0.query",
        effect="fewer accepted drafts",
        what="The drafter's queries are rotated by one position too few.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/b325a670302734f4104c2d916677bc047f30543c"),
        ),
        fix="Position n, that of the newest token (transformers), or n - 1 (vLLM).",
        function="drafter.model.Drafter.attention_inputs",
        change={"position = lengths if is_transformers else last": "position = last if is_transformers else last - 1"},
    ),
)
