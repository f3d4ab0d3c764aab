"""Acceptance that does not keep the target's law."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

SOFT_LAW = (
    Seen("transformers", "https://github.com/huggingface/transformers/issues/47932"),
    Seen("dflash", "https://github.com/z-lab/dflash/issues/74"),
)
ONE_SIDE = (
    Seen("jaymody/speculative-sampling", "https://github.com/jaymody/speculative-sampling/issues/3"),
    Seen("vLLM", "https://github.com/vllm-project/vllm/pull/10198"),
)
RATIO = "Accept draft x when u * q(x) < p(x); after a rejection draw from max(p - q, 0), renormalised."

MUTANTS = (
    Mutant(
        name="greedy-draft-told-as-sampled",
        bugs=("B17", "B18"),
        rank=4,
        shows_at="E2B/law/greedy.told",
        effect="wrong probabilities",
        what="Greedy drafts are accepted as if drawn from softmax(draft logits).",
        seen_in=(*SOFT_LAW, Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735")),
        fix="A greedy draft comes from a one-hot law: q(x) = 1.",
        function="decoding.stages.draft._draw",
        change={
            "jax.nn.one_hot(token, drafter.config.text.vocab_size, dtype=jnp.float32)": "jax.nn.softmax("
            "drafter.logits(normed), axis=-1)"
        },
    ),
    Mutant(
        name="sampled-draft-taken-greedily",
        bugs=("B14", "B19"),
        rank=4,
        shows_at="E2B/law/plain.drawn",
        effect="wrong probabilities",
        what="At a temperature the drafts are argmax all the same, while acceptance is told the law with temperature.",
        seen_in=(*SOFT_LAW, *ONE_SIDE),
        fix="Draw from the law that acceptance is told, or tell it the law that was drawn from.",
        function="decoding.stages.draft._draw",
        change={"choose(probs, uniforms), probs": "jnp.argmax(probs, axis=-1).astype(jnp.int32), probs"},
    ),
    Mutant(
        name="draft-drawn-in-bfloat16",
        bugs=("B16",),
        rank=4,
        shows_at="E2B/law/plain.drawn",
        effect="wrong probabilities",
        what="Drafts are drawn from the law rounded to bfloat16; acceptance is told the one in float32.",
        seen_in=(Seen("DeepSpec", "https://github.com/deepseek-ai/DeepSpec/issues/31"),),
        fix="Draw from the very array that acceptance is told.",
        function="decoding.stages.draft._draw",
        change={
            "choose(probs, uniforms), probs": "choose(probs.astype(jnp.bfloat16).astype(jnp.float32), uniforms), probs"
        },
    ),
    Mutant(
        name="draft-told-without-its-cuts",
        bugs=("B19",),
        rank=4,
        shows_at="E2B/law/top_k_5.told",
        effect="wrong probabilities",
        what="Drafts are drawn after top-k and top-p; acceptance is told the law before them.",
        seen_in=ONE_SIDE,
        fix="Tell acceptance the law after all processors, on both sides.",
        function="decoding.stages.draft._draw",
        change={
            "choose(probs, uniforms), probs": "choose(probs, uniforms), "
            "law(drafter.logits(normed), Sampling(sampling.temperature))"
        },
    ),
    Mutant(
        name="residual-by-softmax",
        bugs=("B15",),
        rank=4,
        shows_at="E2B/accept/sampled.next_token",
        effect="wrong probabilities",
        what="The residual is softmax(max(p - q, 0)), which gives every token some probability.",
        seen_in=(Seen("transformers", "https://github.com/huggingface/transformers/pull/28508"),),
        fix=RATIO,
        function="decoding.stages.accept.residual",
        change={"jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)": "jax.nn.softmax(rest, axis=-1)"},
    ),
    Mutant(
        name="residual-forgotten",
        rank=4,
        shows_at="E2B/accept/sampled.next_token",
        effect="wrong probabilities",
        what="After a rejection the next token is drawn from the target's law itself.",
        fix=RATIO,
        function="decoding.stages.accept.residual",
        change={"jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)": "target_probs"},
    ),
    Mutant(
        name="residual-after-full-acceptance",
        rank=4,
        shows_at="26B-A4B/accept/sampled.next_token",
        effect="wrong probabilities",
        what="When all drafts were accepted, the last draft's law is still subtracted from the target's.",
        fix="After the last draft nothing was proposed: draw from the target's law.",
        function="decoding.stages.accept.with_none_last",
        change={
            "jnp.pad(draft_probs, ((0, 0), (0, 1), (0, 0)))": "jnp.concatenate([draft_probs, draft_probs[:, -1:]], axis=1)"
        },
    ),
    Mutant(
        name="batch-accepts-the-minimum",
        bugs=("B18",),
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="All rows keep as many drafts as the worst one, and draw a residual token at a place where they accepted.",
        seen_in=(Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735"),),
        fix="Count and draw for each row by itself.",
        function="decoding.stages.accept.decide",
        change={
            "count_leading(uniforms[:, :-1] * q < p)": "jnp.full(len(p), count_leading(uniforms[:, :-1] * q < p).min())"
        },
    ),
    Mutant(
        name="accept-the-targets-argmax-only",
        bugs=("B19",),
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="At a temperature, a draft is accepted if and only if it is the target's most likely token.",
        seen_in=(Seen("mlxcel", "https://github.com/lablup/mlxcel/issues/902"), *ONE_SIDE),
        fix=RATIO,
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "draft_tokens == argmax(target_probs[:, :-1])"},
    ),
    Mutant(
        name="target-cuts-forgotten",
        bugs=("B19",),
        rank=4,
        shows_at="E2B/law/top_k_5",
        effect="wrong probabilities",
        what="The target's law at acceptance has the temperature, but neither top-k nor top-p.",
        seen_in=ONE_SIDE,
        fix="Compare the laws after all processors, on both sides.",
        function="decoding.sampling.law",
        change={
            "    logits = logits.astype(jnp.float32)\n": (
                "    logits = logits.astype(jnp.float32)\n    sampling = Sampling(sampling.temperature)\n"
            )
        },
    ),
    Mutant(
        name="cut-without-renormalising",
        rank=4,
        shows_at="E2B/law/top_k_5",
        effect="wrong probabilities",
        what="After top-k and top-p the probabilities are not brought back to sum 1.",
        fix="Renormalise what is left.",
        function="decoding.sampling.law",
        change={
            "    if 0 < sampling.top_k": (
                "    full = jax.nn.softmax(logits / sampling.temperature, axis=-1)\n    if 0 < sampling.top_k"
            ),
            "    return jax.nn.softmax(logits, axis=-1)": "    return jnp.where(jnp.isneginf(logits), 0, full)",
        },
    ),
    Mutant(
        name="ratio-upside-down",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="Draft and target change places in the ratio: the papers use the letters p and q in opposite senses.",
        fix=RATIO,
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "uniforms[:, :-1] * p < q"},
    ),
    Mutant(
        name="one-uniform-for-all-drafts",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="All drafts of a round are judged by the same random number.",
        fix="One fresh uniform number for each draft.",
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "uniforms[:, :1] * q < p"},
    ),
    Mutant(
        name="accepted-after-a-rejection",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong text",
        what="Agreeing drafts are counted wherever they stand, also behind a rejected one.",
        fix="Only the prefix before the first rejection counts.",
        function="decoding.stages.accept.decide",
        change={"count_leading(uniforms[:, :-1] * q < p)": "(uniforms[:, :-1] * q < p).sum(axis=1, dtype=jnp.int32)"},
    ),
    Mutant(
        name="next-token-one-row-late",
        rank=4,
        shows_at="E2B/accept/greedy.next_token",
        effect="wrong text",
        what="The token after a rejection is read one row late, where the target has already seen the rejected draft.",
        seen_in=(Seen("openvino.genai", "https://github.com/openvinotoolkit/openvino.genai/issues/4190"),),
        fix="Row num_accepted holds the target's view of the first rejected place.",
        function="decoding.stages.accept.accept_greedy",
        change={
            "jnp.take_along_axis(choices, num_accepted[:, None], axis=1)": "jnp.take_along_axis(choices, "
            "jnp.minimum(num_accepted[:, None] + 1, choices.shape[1] - 1), axis=1)"
        },
    ),
    Mutant(
        name="sample-match-with-a-fresh-correction",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="A draft is accepted if it equals the target's own sample, and if not, another sample is drawn.",
        seen_in=(Seen("mlx-swift-lm", "https://github.com/ml-explore/mlx-swift-lm/pull/459"),),
        fix="Emit the sample that the draft was compared with; drawing afresh favours what was not drafted.",
        function="decoding.stages.accept.decide",
        change={
            "uniforms[:, :-1] * q < p": "draft_tokens == choose(target_probs[:, :-1], uniforms[:, :-1])",
            "choose(rest, ": "choose(at_stop(target_probs, num_accepted), ",
        },
    ),
    Mutant(
        name="block-residual-without-the-weight",
        rank=4,
        shows_at="E2B/accept_block/sampled.next_token",
        effect="wrong probabilities",
        what="By block, the next token is drawn from max(p - q, 0), as if drafts had been judged one by one.",
        seen_in=(Seen("vllm-ascend", "https://github.com/vllm-project/vllm-ascend/issues/7807"),),
        fix="Draw from max(w p - q, 0), w the weight of the run that was accepted.",
        function="decoding.stages.accept_block.decide_block",
        change={"residual(at_stop(weighted, ": "residual(at_stop(target_probs, "},
    ),
    Mutant(
        name="block-accepted-by-weight-alone",
        rank=4,
        shows_at="E2B/accept_block/sampled.num_accepted",
        effect="wrong probabilities",
        what="By block, each run is accepted with its weight as probability, which is right for the longest alone.",
        fix="Accept a shorter run with probability s / (s + 1 - w), s the sum of max(w p - q, 0) after it.",
        function="decoding.stages.accept_block.decide_block",
        change={"(over + (1 - weights))[:, 1:] < over[:, 1:]": "1 < weights[:, 1:]"},
    ),
)
