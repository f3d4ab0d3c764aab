"""Windows that are off by one, and bidirectional masks."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

DRAFTER_WINDOW = (Seen("mlxcel", "https://github.com/lablup/mlxcel/pull/202"),)

MUTANTS = (
    Mutant(
        name="window-one-too-long",
        bugs=("B67",),
        rank=14,
        shows_at="E2B/forward/layers.0.attention",
        what="A query of a sliding layer sees `window` earlier tokens besides its own.",
        seen_in=(
            Seen("SGLang", "https://github.com/sgl-project/sglang/pull/26147"),
            Seen("Megatron-Bridge", "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/2656"),
            Seen("mlx-lm", "https://github.com/ml-explore/mlx-lm/pull/390"),
        ),
        fix="The window counts the token itself: q - k < window; FlashAttention's left width is window - 1.",
        function="gemma4.functional.attention_mask",
        change={"key > query - window": "key >= query - window"},
    ),
    Mutant(
        name="window-one-too-short",
        bugs=("B68",),
        rank=14,
        shows_at="E2B/forward/layers.0.attention",
        what="Sliding positions are counted from one: the window loses its oldest key.",
        seen_in=(Seen("QEff", "https://github.com/quic/efficient-transformers/pull/1250"),),
        fix="Count query and key positions both from zero.",
        function="gemma4.functional.attention_mask",
        change={"key > query - window": "key > query + 1 - window"},
    ),
    Mutant(
        name="drafter-window-one-too-short",
        bugs=("B69",),
        rank=14,
        shows_at="E2B/draft/step0/layers.0.attention",
        effect="fewer accepted drafts",
        what="The drafter's sliding layers see one position fewer than their convention says.",
        seen_in=DRAFTER_WINDOW,
        fix="From position n: the last window + 1 positions (transformers); from n - 1: the last window positions (vLLM).",
        function="drafter.model.Drafter.attention_inputs",
        change={
            "text.sliding_window + 1 if is_transformers else text.sliding_window": "text.sliding_window "
            "if is_transformers else text.sliding_window - 1"
        },
    ),
    Mutant(
        name="drafter-window-one-too-long",
        bugs=("B69",),
        rank=14,
        shows_at="E2B/draft/step0/layers.0.attention",
        effect="fewer accepted drafts",
        what="The drafter's sliding layers see one position more than their convention says.",
        seen_in=DRAFTER_WINDOW,
        fix="From position n: the last window + 1 positions (transformers); from n - 1: the last window positions (vLLM).",
        function="drafter.model.Drafter.attention_inputs",
        change={
            "text.sliding_window + 1 if is_transformers else text.sliding_window": "text.sliding_window + 2 "
            "if is_transformers else text.sliding_window + 1"
        },
    ),
    Mutant(
        name="not-causal",
        rank=14,
        shows_at="E2B/forward/layers.0.attention",
        what="Queries see keys that come after them.",
        fix="key position <= query position.",
        function="gemma4.functional.attention_mask",
        change={"(key >= 0) & (key <= query)": "(key >= 0) & (query >= 0)"},
    ),
    Mutant(
        name="window-looks-both-ways",
        bugs=("B91",),
        rank=18,
        shows_at="E2B/forward/layers.0.attention",
        what="The bidirectional mask of image tokens is applied to text: sliding layers see later tokens too.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/041f8891"),
            Seen("QEff", "https://github.com/quic/efficient-transformers/pull/1159"),
        ),
        fix="Bidirectional attention only among image tokens, and only where the configuration says so.",
        function="gemma4.functional.attention_mask",
        change={"mask & (key > query - window)": "(key >= 0) & (key > query - window) & (key < query + window)"},
    ),
)
