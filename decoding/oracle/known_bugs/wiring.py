"""Which of the target's layers the drafter reads, and whether it runs at all."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MUTANTS = (
    Mutant(
        name="donor-is-the-first-owner",
        bugs=("B43", "B44"),
        rank=9,
        shows_at="E2B/share/sliding_attention.key",
        effect="fewer accepted drafts",
        what="The drafter reads K/V of layers chosen by index, here the first owner of each type.",
        seen_in=(
            Seen("Rapid-MLX", "https://github.com/raullenchai/Rapid-MLX/commit/4c901fea"),
            Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/pull/23398"),
        ),
        fix="The last layer of each type that owns K/V (E2B: 13 and 14 of 35).",
        function="gemma4.config.Config.donors",
        change={
            "return self._last_owners()": "owners = self.layer_types[: self.first_kv_shared_layer]\n"
            "        return {kind: owners.index(kind) for kind in owners}"
        },
    ),
    Mutant(
        name="one-block-table-for-both-types",
        bugs=("B45",),
        rank=9,
        shows_at="E2B/draft/step0/layers.3.attention",
        effect="fewer accepted drafts",
        what="Full layers' K/V are looked up through the sliding layers' block table.",
        seen_in=(
            Seen("vllm-ascend", "https://github.com/vllm-project/vllm-ascend/issues/16980"),
            Seen("vllm.cpp", "https://github.com/mudler/vllm.cpp/issues/519"),
        ),
        fix="Each layer type has its own block table.",
        function="drafter.model.step",
        change={
            "    inputs = draft_model.attention_inputs(": """\
    from gemma4.config import FULL

    slots = jnp.arange(shared.donors[FULL].capacity) % shared.donors[SLIDING].capacity
    aliased = LayerKV(*[x[:, :, slots] for x in shared.donors[FULL]])
    shared = shared._replace(donors=shared.donors | {FULL: aliased})
    inputs = draft_model.attention_inputs("""
        },
    ),
    Mutant(
        name="drafter-sleeps",
        bugs=("B66", "B74"),
        rank=13,
        shows_at="E2B/law/greedy.drawn",
        effect="fewer accepted drafts",
        what="The drafter fails silently, and a dummy token 0 is proposed.",
        seen_in=(
            Seen("vLLM", "https://github.com/vllm-project/vllm/issues/58080"),
            Seen("mlx-swift-lm", "https://github.com/ml-explore/mlx-swift-lm/pull/415"),
            Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/issues/24758"),
        ),
        fix="Raise errors, and count rounds in which nothing was drafted.",
        function="decoding.stages.draft._draw",
        change={
            "token = draft_model.argmax(normed)": "token = jnp.zeros(normed.shape[0], jnp.int32)",
        },
    ),
)
