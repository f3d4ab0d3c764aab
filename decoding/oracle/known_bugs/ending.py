"""How a run of accepted tokens ends: EOS inside it, the end of the budget, and the count."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MUTANTS = (
    Mutant(
        name="eos-looked-for-at-the-end-only",
        bugs=("B46",),
        rank=10,
        shows_at="E2B/emit/num_emitted",
        what="Only the last token of a run is compared with EOS: the text continues past an EOS inside the run.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/issues/47912"),),
        fix="End the run after its first EOS.",
        function="decoding.stages.emit.count_emitted",
        change={"jnp.int32))  #": "jnp.int32)) & (index == num_tokens[:, None] - 1)  #"},
    ),
    Mutant(
        name="budget-overshot",
        bugs=("B46",),
        rank=10,
        shows_at="E2B/emit/num_emitted",
        what="A run that crosses the end of the budget is emitted whole.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/pull/48002"),),
        fix="End the run where the budget ends.",
        function="decoding.stages.emit.count_emitted",
        change={
            "jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room)": "jnp.minimum(num_tokens, first_eos + 1)",
            "(num_emitted == room)": "(num_emitted >= room)",
        },
    ),
    Mutant(
        name="length-tested-before-eos",
        bugs=("B47",),
        rank=10,
        shows_at="E2B/emit/num_emitted",
        what="A run that reaches the budget ends there, without a search for an EOS inside it.",
        seen_in=(
            Seen("SGLang", "https://github.com/sgl-project/sglang/pull/33758"),
            Seen("koboldcpp", "https://github.com/LostRuins/koboldcpp/issues/1276"),
        ),
        fix="The earlier of the two ends the run.",
        function="decoding.stages.emit.count_emitted",
        change={
            "jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room)": "jnp.where(num_tokens >= room, room, "
            "jnp.minimum(num_tokens, first_eos + 1))"
        },
    ),
    Mutant(
        name="drafted-eos-ends-the-row",
        bugs=("B48",),
        rank=10,
        shows_at="E2B/emit/done",
        what="A drafted EOS ends the row although the target rejected it.",
        seen_in=(
            Seen("lattice", "https://github.com/ohdearquant/lattice/pull/287"),
            Seen("openvino.genai", "https://github.com/openvinotoolkit/openvino.genai/pull/3293"),
        ),
        fix="End a row only at emitted tokens.",
        function="decoding.stages.emit.count_emitted",
        change={"(first_eos < num_emitted)": "is_eos.any(axis=1)"},
    ),
)
