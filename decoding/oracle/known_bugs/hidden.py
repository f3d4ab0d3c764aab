"""Which of the target's hidden rows the drafter is given, and what one draft step hands to the next."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

BEFORE_THE_NORM = (
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/a9d7a0482adebc4963f0d8e99451a2acb93bb0b5"),
    Seen("ik_llama.cpp", "https://github.com/ikawrakow/ik_llama.cpp/pull/2324"),
    Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/pull/24025"),
)
ROW_ZERO = (
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/5f6de951071b71507d803a7b6c9c65b331b27044"),
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/4a87dcff"),
)
ROW = "Row num_accepted of the verified block: the row that the newest token was predicted from."

MUTANTS = (
    Mutant(
        name="hidden-before-the-final-norm",
        bugs=("B50", "B51", "B97"),
        rank=1,
        shows_at="E2B/verify/hidden",
        effect="fewer accepted drafts",
        what="Verify hands on the last layer's output, before the target's final norm.",
        seen_in=BEFORE_THE_NORM,
        fix="Give the drafter the rows that the logits are computed from, after the final norm.",
        function="decoding.stages.verify.verify",
        change={
            """
    hidden, cache = target(block, cache)
    return Verification(target.logits(hidden), hidden, cache)
""": """
    taps = {}
    hidden, cache = target(block, cache, lambda name, value: taps.setdefault(name, value))
    return Verification(target.logits(hidden), taps[f"layers.{target.config.num_hidden_layers - 1}.output"], cache)
"""
        },
    ),
    Mutant(
        name="first-hidden-before-the-final-norm",
        bugs=("B50", "B51", "B97"),
        rank=1,
        shows_at="E2B/rounds/round0/own_drafts",
        effect="fewer accepted drafts",
        what="Prefill hands on the last layer's output, before the target's final norm: the first round's drafts suffer.",
        seen_in=BEFORE_THE_NORM,
        fix="Give the drafter the rows that the logits are computed from, after the final norm.",
        function="decoding.stages.prefill._read_chunk",
        change={
            "last, cache = target(tokens, cache, only": "taps = {}\n"
            "    tap = lambda name, value: taps.setdefault(name, value)\n"
            "    _, cache = target(tokens, cache, tap, only",
            "    return jnp.where": "    last = taps[f'layers.{target.config.num_hidden_layers - 1}.output']\n"
            "    return jnp.where",
        },
    ),
    Mutant(
        name="first-hidden-of-row-zero",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/own_drafts",
        effect="fewer accepted drafts",
        what="The first round is given hidden row 0 of the prefill (the BOS token's) instead of the last one.",
        seen_in=ROW_ZERO,
        fix="The hidden row of the last prompt token: the one that the first new token was predicted from.",
        function="decoding.stages.prefill._read_chunk",
        change={"jnp.maximum(kept - 1, 0)": "jnp.zeros_like(kept)"},
    ),
    Mutant(
        name="first-token-with-its-own-hidden",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/own_drafts",
        effect="fewer accepted drafts",
        what="The first round pairs the newest token with that token's own hidden row instead of the row before it.",
        seen_in=(Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735"),),
        fix="The hidden row of the last prompt token: the one that the first new token was predicted from.",
        function="decoding.round.round_of",
        change={
            "    block = draft(": """\
    own, _ = target(state.token[:, None], state.cache)
    hidden = jax.numpy.where(state.emitted[:, None] > 1, state.hidden, own[:, 0])
    block = draft(""",
            "state.token, state.hidden, shared, draft_key": "state.token, hidden, shared, draft_key",
        },
    ),
    Mutant(
        name="hidden-of-row-zero",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="Every round hands on hidden row 0 of its block, however many drafts were accepted.",
        seen_in=ROW_ZERO,
        fix=ROW,
        function="decoding.round.round_of",
        change={"hidden=row_at(verified.hidden, num_emitted - 1, state.hidden)": "hidden=verified.hidden[:, 0]"},
    ),
    Mutant(
        name="hidden-of-the-last-row",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="Every round hands on the last hidden row of its block, that of a draft which may have been rejected.",
        seen_in=ROW_ZERO,
        fix=ROW,
        function="decoding.round.round_of",
        change={"hidden=row_at(verified.hidden, num_emitted - 1, state.hidden)": "hidden=verified.hidden[:, -1]"},
    ),
    Mutant(
        name="hidden-one-row-late",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="The hidden row is the one after the last accepted draft's: it belongs to the first rejected one.",
        seen_in=ROW_ZERO,
        fix=ROW,
        function="decoding.round.round_of",
        change={
            "row_at(verified.hidden, num_emitted - 1,": "row_at(verified.hidden, "
            "jax.numpy.minimum(num_emitted, verified.hidden.shape[1] - 1),"
        },
    ),
    Mutant(
        name="hidden-never-renewed",
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="Rounds keep the hidden row of the prefill.",
        fix=ROW,
        function="decoding.round.round_of",
        change={"hidden=row_at(verified.hidden, num_emitted - 1, state.hidden)": "hidden=state.hidden"},
    ),
    Mutant(
        name="chained-hidden-before-the-norm",
        bugs=("B52",),
        rank=1,
        shows_at="E2B/draft/step0/post_projection",
        effect="fewer accepted drafts",
        what="post_projection reads the drafter's last layer instead of its final norm: only later drafts suffer.",
        seen_in=(
            Seen("ik_llama.cpp", "https://github.com/ikawrakow/ik_llama.cpp/pull/1993"),
            Seen("vLLM", "https://github.com/vllm-project/vllm/pull/47448"),
            Seen("ATOM", "https://github.com/ROCm/ATOM/pull/1764"),
        ),
        fix="post_projection(norm(x)): head and next step read the same normed row.",
        function="drafter.model.Drafter.__call__",
        change={"self.post_projection(normed)": "self.post_projection(x)"},
    ),
    Mutant(
        name="hidden-not-chained",
        rank=1,
        shows_at="E2B/draft/block/tokens",
        effect="fewer accepted drafts",
        what="Every draft step is given the target's hidden row; what the step before it returned is thrown away.",
        fix="Feed post_projection's row to the next draft step.",
        function="decoding.stages.draft.draft",
        change={"normed, hidden = step(": "normed, _ = step("},
    ),
)
