"""Batches of rows of different lengths."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

UNEVEN = (
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/issues/1144"),
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/a9a9e4be"),
)

MUTANTS = (
    Mutant(
        name="rows-share-one-position",
        bugs=("B81",),
        rank=19,
        shows_at="E2B/share/sliding_attention.key",
        what="All rows of a batch are written and rotated at the longest row's position.",
        seen_in=UNEVEN,
        fix="Every row has its own length.",
        function="gemma4.model.Gemma4.attention_inputs",
        change={"start = cache.length if cache": "start = jnp.full_like(cache.length, cache.length.max()) if cache"},
    ),
    Mutant(
        name="drafter-rows-share-one-length",
        bugs=("B81",),
        rank=19,
        shows_at="E2B/draft/step0/layers.0.query",
        effect="fewer accepted drafts",
        what="All rows of a batch are drafted from the longest row's length.",
        seen_in=UNEVEN,
        fix="Every row has its own length.",
        function="drafter.model.step",
        change={
            "    key_positions = {kind: slot": "    shared = shared._replace(length=jnp.full_like(shared.length, "
            "shared.length.max()))\n    key_positions = {kind: slot"
        },
    ),
)
