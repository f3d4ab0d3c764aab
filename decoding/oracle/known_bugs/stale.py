"""Rejected drafts that stay visible, to the drafter or to the target."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

BY_LENGTH = "With n committed tokens the drafter sees positions below n; the newest token's K/V does not exist yet."
# Releases 5.17 to 5.22.2, `generation/candidate_generator.py`.
CANDIDATE_GENERATOR = Seen("transformers 5.17 to 5.22.2", "https://github.com/huggingface/transformers")

MUTANTS = (
    Mutant(
        name="drafter-length-counts-rejected",
        bugs=("B07", "B08"),
        rank=8,
        shows_at="E2B/rounds/round1/own_drafts",
        effect="fewer accepted drafts",
        what="The length that the drafter gets still counts the last round's rejected drafts.",
        seen_in=(
            Seen("vLLM", "https://github.com/vllm-project/vllm/pull/47920"),
            Seen("vllm-ascend", "https://github.com/vllm-project/vllm-ascend/pull/14883"),
        ),
        fix="Subtract the rejected drafts before every draft step, also where the position is constant.",
        function="decoding.round.speculative_round",
        change={
            "share_cache(state.cache, target.config)": "share_cache(state.cache, target.config)\n"
            "    rejected = options.draft_length - state.last.num_accepted\n"
            "    shared = shared._replace(length=shared.length + rejected * (state.emitted > 1))"
        },
    ),
    Mutant(
        name="drafter-sees-one-stale-row",
        bugs=("B09",),
        rank=8,
        shows_at="E2B/draft/step0/layers.3.attention",
        effect="fewer accepted drafts",
        what="In full layers the drafter sees the slot of the newest token, which holds a rejected draft's K/V.",
        seen_in=(CANDIDATE_GENERATOR,),
        fix=BY_LENGTH,
        function="drafter.model.step",
        change={
            "    normed, next_hidden = draft_model(": """\
    from gemma4.config import FULL

    slot = jnp.arange(shared.donors[FULL].capacity) == shared.length[:, None, None]
    inputs[FULL] = inputs[FULL]._replace(mask=inputs[FULL].mask | slot)
    normed, next_hidden = draft_model("""
        },
    ),
    Mutant(
        name="drafter-sees-the-whole-ring",
        bugs=("B10",),
        rank=8,
        shows_at="E2B/draft/step0/layers.0.attention",
        effect="fewer accepted drafts",
        what="In sliding layers the drafter sees the whole ring, rejected drafts included.",
        seen_in=(CANDIDATE_GENERATOR,),
        fix="Mask the ring by position; truncating it at an absolute length has no effect once the ring is shorter.",
        function="drafter.model.step",
        change={
            "    normed, next_hidden = draft_model(": "    inputs[SLIDING] = inputs[SLIDING]._replace("
            "mask=jnp.ones_like(inputs[SLIDING].mask))\n    normed, next_hidden = draft_model("
        },
    ),
    Mutant(
        name="drafter-sees-the-newest-slot",
        bugs=("B11",),
        rank=8,
        shows_at="E2B/draft/step0/layers.0.attention",
        effect="fewer accepted drafts",
        what="The drafter's mask includes the newest token's position, in both layer types.",
        seen_in=(Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735"),),
        fix=BY_LENGTH,
        function="drafter.model.step",
        change={
            "    normed, next_hidden = draft_model(": """\
    for kind, kv in shared.donors.items():
        slot = jnp.arange(kv.capacity) == shared.length[:, None, None] % kv.capacity
        inputs[kind] = inputs[kind]._replace(mask=inputs[kind].mask | slot)
    normed, next_hidden = draft_model("""
        },
    ),
    Mutant(
        name="no-rollback-past-the-window",
        bugs=("B12", "B28"),
        rank=8,
        shows_at="E2B/share/sliding_attention.key",
        what="Once a ring has wrapped, rollback is silently skipped.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/aec6998d"),
            Seen("Rapid-MLX", "https://github.com/raullenchai/Rapid-MLX/commit/148caac7"),
        ),
        fix="Give the ring room for a block beside the window; then rollback only changes the length.",
        function="gemma4.cache.truncate",
        change={
            "length=length": "length=jnp.where(cache.length > min(kv.capacity for kv in cache.layers if kv), "
            "cache.length, length)"
        },
    ),
    Mutant(
        name="no-rollback",
        bugs=("B12",),
        rank=8,
        shows_at="E2B/share/sliding_attention.key",
        what="Rejected drafts are never rolled back.",
        seen_in=(Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/aec6998d"),),
        fix="cache.length = length before the block + accepted drafts + 1.",
        function="gemma4.cache.truncate",
        change={"length=length": "length=cache.length"},
    ),
    Mutant(
        name="rollback-forgets-one-too-many",
        rank=8,
        shows_at="E2B/rounds/round0/length",
        what="Only the accepted drafts are kept, not the token before them in verify's block.",
        fix="Keep num_accepted + 1 tokens of the block.",
        function="decoding.round.speculative_round",
        change={"state.cache.length, num_emitted)": "state.cache.length, num_emitted - 1)"},
    ),
    Mutant(
        name="empty-slots-seen",
        bugs=("B13",),
        rank=8,
        shows_at="E2B/draft/step0/layers.0.attention",
        what="Empty slots are zeros but not masked: a zero key still adds e^0 to the softmax.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/pull/2113"),
            Seen("mlxcel", "https://github.com/lablup/mlxcel/pull/202"),
        ),
        fix="Mask empty slots.",
        function="gemma4.functional.attention_mask",
        change={"(key >= 0) & (key <= query)": "key <= query"},
    ),
)
