"""Acceptance that does not keep the target's distribution."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

SOFT_LAW = (
    Seen("transformers", "https://github.com/huggingface/transformers/issues/47932"),
    Seen("dflash", "https://github.com/z-lab/dflash/issues/74"),
)
ONE_SIDE = (
    Seen("jaymody/speculative-sampling", "https://github.com/jaymody/speculative-sampling/issues/3"),
    Seen("vLLM", "https://github.com/vllm-project/vllm/pull/10198"),
)
RATIO = "Accept draft x if u * q(x) < p(x); after a rejection draw from max(p - q, 0), renormalised."

MUTANTS = (
    Mutant(
        name="greedy-draft-told-as-sampled",
        bugs=("B17", "B18"),
        rank=4,
        shows_at="E2B/law/greedy.told",
        effect="wrong probabilities",
        what="Greedy drafts are accepted as if drawn from softmax(draft logits).",
        seen_in=(*SOFT_LAW, Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735")),
        fix="A greedy draft comes from a one-hot distribution: q(x) = 1.",
        function="decoding.stages.draft._draw",
        change={
            "jax.nn.one_hot(token, draft_model.config.text.vocab_size, dtype=jnp.float32)": "jax.nn.softmax("
            "draft_model.logits(normed), axis=-1)"
        },
    ),
    Mutant(
        name="sampled-draft-taken-greedily",
        bugs=("B14", "B19"),
        rank=4,
        shows_at="E2B/law/plain.drawn",
        effect="wrong probabilities",
        what="At a temperature the drafts are still the argmax, while acceptance receives the distribution with temperature.",
        seen_in=(*SOFT_LAW, *ONE_SIDE),
        fix="Acceptance must receive the distribution that drafts are drawn from.",
        function="decoding.stages.draft._draw",
        change={"kernels.sample_from(probs, uniforms), probs": "jnp.argmax(probs, axis=-1).astype(jnp.int32), probs"},
    ),
    Mutant(
        name="draft-drawn-in-bfloat16",
        bugs=("B16",),
        rank=4,
        shows_at="E2B/law/plain.drawn",
        effect="wrong probabilities",
        what="Drafts are drawn from the distribution rounded to bfloat16; acceptance receives it in float32.",
        seen_in=(Seen("DeepSpec", "https://github.com/deepseek-ai/DeepSpec/issues/31"),),
        fix="Draw from the same array that acceptance receives.",
        function="decoding.stages.draft._draw",
        change={"kernels.sample_from(probs, ": "kernels.sample_from(probs.astype(jnp.bfloat16).astype(jnp.float32), "},
    ),
    Mutant(
        name="draft-told-without-its-cuts",
        bugs=("B19",),
        rank=4,
        shows_at="E2B/law/top_k_5.told",
        effect="wrong probabilities",
        what="Drafts are drawn after top-k and top-p; acceptance receives the distribution before them.",
        seen_in=ONE_SIDE,
        fix="Acceptance must receive both distributions after all logits processors.",
        function="decoding.stages.draft._draw",
        change={
            "kernels.sample_from(probs, uniforms), probs": "kernels.sample_from(probs, uniforms), "
            "jax.nn.softmax(draft_model.logits(normed) / sampling.temperature, axis=-1)"
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
        what="After a rejection the next token is drawn from the target's distribution itself.",
        fix=RATIO,
        function="decoding.stages.accept.residual",
        change={"jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)": "target_probs"},
    ),
    Mutant(
        name="residual-after-full-acceptance",
        rank=4,
        shows_at="26B-A4B/accept/sampled.next_token",
        effect="wrong probabilities",
        what="After full acceptance, the last draft's distribution is still subtracted from the target's.",
        fix="After the last draft nothing was proposed: draw from the target's distribution.",
        function="decoding.stages.accept.pad_with_zero",
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
        what="All rows keep as many drafts as the worst one, and draw a residual token where they accepted a draft.",
        seen_in=(Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735"),),
        fix="Count and draw for each row separately.",
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
        what="At a temperature, a draft is accepted only if it is the target's most likely token.",
        seen_in=(Seen("mlxcel", "https://github.com/lablup/mlxcel/issues/902"), *ONE_SIDE),
        fix=RATIO,
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "draft_tokens == kernels.argmax(target_probs[:, :-1])"},
    ),
    Mutant(
        name="target-cuts-forgotten",
        bugs=("B19",),
        rank=4,
        shows_at="E2B/law/top_k_5",
        effect="wrong probabilities",
        what="The target's distribution at acceptance has the temperature, but neither top-k nor top-p.",
        seen_in=ONE_SIDE,
        fix="Compare both distributions after all logits processors.",
        function="decoding.sampling.token_probs",
        change={
            "    logits = logits.astype(jnp.float32)\n": (
                "    return jax.nn.softmax(logits.astype(jnp.float32) / sampling.temperature, axis=-1)\n"
            )
        },
    ),
    Mutant(
        name="cut-without-renormalising",
        rank=4,
        shows_at="E2B/law/top_k_5",
        effect="wrong probabilities",
        what="After top-k and top-p the probabilities are not renormalised to sum 1.",
        fix="Renormalise the remaining probabilities.",
        function="decoding.sampling.token_probs",
        change={
            "    if sampling.has_top_k": (
                "    full = jax.nn.softmax(logits / sampling.temperature, axis=-1)\n    if sampling.has_top_k"
            ),
            "    return jax.nn.softmax(logits, axis=-1)": "    return jnp.where(jnp.isneginf(logits), 0, full)",
        },
    ),
    Mutant(
        name="ratio-upside-down",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="Draft and target are swapped in the ratio: the papers use the letters p and q in opposite senses.",
        fix=RATIO,
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "uniforms[:, :-1] * p < q"},
    ),
    Mutant(
        name="one-uniform-for-all-drafts",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="All drafts of a round are compared with the same random number.",
        fix="One fresh uniform number for each draft.",
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "uniforms[:, :1] * q < p"},
    ),
    Mutant(
        name="accepted-after-a-rejection",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong text",
        what="All drafts that would be accepted are counted, also after a rejected one.",
        fix="Count only the drafts before the first rejection.",
        function="decoding.stages.accept.decide",
        change={"count_leading(uniforms[:, :-1] * q < p)": "(uniforms[:, :-1] * q < p).sum(axis=1, dtype=jnp.int32)"},
    ),
    Mutant(
        name="next-token-one-row-late",
        rank=4,
        shows_at="E2B/accept/greedy.next_token",
        effect="wrong text",
        what="The token after a rejection is read one position late, where the target has already read the rejected draft.",
        seen_in=(Seen("openvino.genai", "https://github.com/openvinotoolkit/openvino.genai/issues/4190"),),
        fix="The logits at index num_accepted are about the first rejected draft's position.",
        function="decoding.stages.accept.accept_greedy",
        change={
            "select_position(choices, num_accepted)": "select_position(choices, "
            "jnp.minimum(num_accepted + 1, choices.shape[1] - 1))"
        },
    ),
    Mutant(
        name="sample-match-with-a-fresh-correction",
        rank=4,
        shows_at="E2B/accept/sampled.num_accepted",
        effect="wrong probabilities",
        what="A draft is accepted if it equals the target's own sample, and if not, another sample is drawn.",
        seen_in=(Seen("mlx-swift-lm", "https://github.com/ml-explore/mlx-swift-lm/pull/459"),),
        fix="Emit the sample that the draft was compared with; a second sample favours tokens that were not drafted.",
        function="decoding.stages.accept.decide",
        change={
            "uniforms[:, :-1] * q < p": "draft_tokens == kernels.sample_from(target_probs[:, :-1], uniforms[:, :-1])",
            "residual(p_there, q_there)": "p_there",
        },
    ),
    Mutant(
        name="block-residual-without-the-weight",
        rank=4,
        shows_at="E2B/accept_block/sampled.next_token",
        effect="wrong probabilities",
        what="In block verification, the next token is drawn from max(p - q, 0), as in token-by-token acceptance.",
        seen_in=(Seen("vllm-ascend", "https://github.com/vllm-project/vllm-ascend/issues/7807"),),
        fix="Draw from max(w p - q, 0), where w is the weight of the accepted run.",
        function="decoding.stages.accept_block.decide_block",
        change={"residual(select_position(weighted, ": "residual(select_position(target_probs, "},
    ),
    Mutant(
        name="block-accepted-by-weight-alone",
        rank=4,
        shows_at="E2B/accept_block/sampled.num_accepted",
        effect="wrong probabilities",
        what="In block verification, each run is accepted with its weight as probability, which only suits the longest.",
        fix="Accept a shorter run with probability s / (s + 1 - w), where s is the sum of max(w p - q, 0) after it.",
        function="decoding.stages.accept_block.decide_block",
        change={"(surplus + (1 - weights))[:, 1:] < surplus[:, 1:]": "1 < weights[:, 1:]"},
    ),
)
