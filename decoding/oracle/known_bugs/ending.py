"""How a run of accepted tokens ends: EOS inside it, the end of the budget, and what is counted."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MUTANTS = (
    Mutant(
        name="eos-looked-for-at-the-end-only",
        bugs=("B46",),
        rank=10,
        shows_at="E2B/emit/num_emitted",
        what="Only the last token of a run is compared with EOS: text goes on past one that was accepted inside.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/issues/47912"),),
        fix="Cut the run after its first EOS, wherever that stands.",
        function="decoding.stages.emit.count_emitted",
        change={"jnp.int32))  #": "jnp.int32)) & (places == num_tokens[:, None] - 1)  #"},
    ),
    Mutant(
        name="budget-overshot",
        bugs=("B46",),
        rank=10,
        shows_at="E2B/emit/num_emitted",
        what="A run that crosses the end of the budget is emitted whole.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/pull/48002"),),
        fix="Cut the run where the budget ends.",
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
        what="A run that reaches the budget is cut there, and the EOS inside it is not looked for any more.",
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
        what="An EOS that was drafted ends the row, though the target never agreed to it.",
        seen_in=(
            Seen("lattice", "https://github.com/ohdearquant/lattice/pull/287"),
            Seen("openvino.genai", "https://github.com/openvinotoolkit/openvino.genai/pull/3293"),
        ),
        fix="Only emitted tokens end a row.",
        function="decoding.stages.emit.count_emitted",
        change={"(first_eos < num_emitted)": "is_eos.any(axis=1)"},
    ),
)
