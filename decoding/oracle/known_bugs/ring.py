"""The sliding ring: order, coordinates, and forgotten keys."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MUTANTS = (
    Mutant(
        name="ring-mask-in-order-of-time",
        bugs=("B20",),
        rank=3,
        shows_at="E2B/chunked/layers.0.attention",
        what="The mask's columns are in order of position, but the ring's slots are not.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/pull/48280"),),
        fix="Build the mask from the absolute position that each slot holds.",
        function="gemma4.model.Gemma4.attention_inputs",
        change={
            "key_positions = slot_positions(positions[:, -1], kv.capacity) if kv else positions": (
                "key_positions = jnp.sort(slot_positions(positions[:, -1], kv.capacity), axis=-1) if kv else positions"
            )
        },
    ),
    Mutant(
        name="ring-slots-taken-for-positions",
        bugs=("B20",),
        rank=3,
        shows_at="E2B/chunked/layers.0.attention",
        what="The target's mask compares absolute query positions with slot numbers.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/pull/48280"),),
        fix="Build the mask from the absolute position that each slot holds.",
        function="gemma4.model.Gemma4.attention_inputs",
        change={
            "slot_positions(positions[:, -1], kv.capacity) if kv": "jnp.broadcast_to(jnp.arange(kv.capacity), "
            "(batch, kv.capacity)) if kv"
        },
    ),
    Mutant(
        name="drafter-slots-taken-for-positions",
        bugs=("B22",),
        rank=3,
        shows_at="E2B/draft/step0/layers.0.attention",
        effect="fewer accepted drafts",
        what="The drafter's mask compares its absolute position with slot numbers of the ring.",
        seen_in=(Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/pull/1139"),),
        fix="Compare absolute positions on both sides; to clamp the offset is not enough.",
        function="drafter.model.step",
        change={
            "slot_positions(shared.length - 1, kv.capacity)": "jnp.broadcast_to(jnp.arange(kv.capacity), "
            "(len(shared.length), kv.capacity))"
        },
    ),
    Mutant(
        name="prefill-keeps-the-last-window-only",
        bugs=("B26",),
        rank=3,
        shows_at="E2B/forward/layers.0.attention",
        what="In a pass longer than the window, all queries see only the last window of keys.",
        seen_in=(
            Seen("mlxcel", "https://github.com/lablup/mlxcel/pull/405"),
            Seen("Ollama", "https://github.com/ollama/ollama/commit/55fa80d07"),
        ),
        fix="Attend to all keys of the pass and forget afterwards; or prefill in chunks.",
        function="gemma4.model.Gemma4.attention_inputs",
        change={
            "        return AttentionInputs(": "        mask = mask & mask[:, -1:] if kind == SLIDING else mask\n"
            "        return AttentionInputs("
        },
    ),
    Mutant(
        name="sliding-layers-see-everything",
        bugs=("B25",),
        rank=3,
        shows_at="E2B/forward/layers.0.attention",
        what="Sliding layers get the full layers' mask.",
        seen_in=(Seen("mistral.rs", "https://github.com/EricLBuehler/mistral.rs/commit/49ba0e954"),),
        fix="One mask for each layer type.",
        function="gemma4.model.Gemma4.attention_inputs",
        change={"config.sliding_window if kind == SLIDING else None": "None"},
    ),
    Mutant(
        name="full-layers-slide",
        rank=3,
        shows_at="E2B/forward/layers.2.attention",
        what="Full layers get the sliding layers' mask.",
        fix="One mask for each layer type.",
        function="gemma4.model.Gemma4.attention_inputs",
        change={"config.sliding_window if kind == SLIDING else None": "config.sliding_window"},
    ),
)
