"""Which of the target's hidden states the drafter gets, and which one a draft step passes to the next."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

BEFORE_THE_NORM = (
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/a9d7a0482adebc4963f0d8e99451a2acb93bb0b5"),
    Seen("ik_llama.cpp", "https://github.com/ikawrakow/ik_llama.cpp/pull/2324"),
    Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/pull/24025"),
)
STATE_ZERO = (
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/5f6de951071b71507d803a7b6c9c65b331b27044"),
    Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/4a87dcff"),
)
STATE = "Hidden state num_accepted of the verified block: the one that predicted the newest token."

MUTANTS = (
    Mutant(
        name="hidden-before-the-final-norm",
        bugs=("B50", "B51", "B97"),
        rank=1,
        shows_at="E2B/verify/hidden",
        effect="fewer accepted drafts",
        what="Verify returns the last layer's output, before the target's final norm.",
        seen_in=BEFORE_THE_NORM,
        fix="Give the drafter the hidden states that the logits are computed from, after the final norm.",
        function="decoding.stages.verify.verify",
        change={
            """
    hidden, cache = target(tokens, cache)
    return Verification(target.logits(hidden), hidden, cache)
""": """
    taps = {}
    hidden, cache = target(tokens, cache, lambda name, value: taps.setdefault(name, value))
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
        what="Prefill returns the last layer's output, before the target's final norm, which affects the first round's drafts.",
        seen_in=BEFORE_THE_NORM,
        fix="Give the drafter the hidden states that the logits are computed from, after the final norm.",
        function="decoding.stages.prefill._read_chunk",
        change={
            "    last, cache = target.hidden_at(tokens, cache, jnp.maximum(kept - 1, 0))\n": """\
    from gemma4.functional import select_position

    taps = {}
    _, cache = target(tokens, cache, lambda name, value: taps.setdefault(name, value))
    output = taps[f"layers.{target.config.num_hidden_layers - 1}.output"]
    last = select_position(output, jnp.maximum(kept - 1, 0))
"""
        },
    ),
    Mutant(
        name="first-hidden-of-row-zero",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/own_drafts",
        effect="fewer accepted drafts",
        what="The first round gets hidden state 0 of the prefill (the BOS token's) instead of the last one.",
        seen_in=STATE_ZERO,
        fix="The hidden state of the last prompt token, which predicted the first new token.",
        function="decoding.stages.prefill._read_chunk",
        change={"jnp.maximum(kept - 1, 0)": "jnp.zeros_like(kept)"},
    ),
    Mutant(
        name="first-token-with-its-own-hidden",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/own_drafts",
        effect="fewer accepted drafts",
        what="The first round pairs the newest token with its own hidden state instead of the one before it.",
        seen_in=(Seen("keras-hub", "https://github.com/keras-team/keras-hub/pull/2735"),),
        fix="The hidden state of the last prompt token, which predicted the first new token.",
        function="decoding.round.speculative_round",
        change={
            "    drafted = draft(": """\
    own, _ = target(state.token[:, None], state.cache)
    hidden = jax.numpy.where(state.emitted[:, None] > 1, state.hidden, own[:, 0])
    drafted = draft(""",
            "state.token, state.hidden, shared, draft_key": "state.token, hidden, shared, draft_key",
        },
    ),
    Mutant(
        name="hidden-of-row-zero",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="Every round returns hidden state 0 of its block, however many drafts were accepted.",
        seen_in=STATE_ZERO,
        fix=STATE,
        function="decoding.state.advance",
        change={"hidden=_select_or_keep(hidden, newest, state.hidden)": "hidden=hidden[:, 0]"},
    ),
    Mutant(
        name="hidden-of-the-last-row",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="Every round returns the last hidden state of its block, that of a draft which may have been rejected.",
        seen_in=STATE_ZERO,
        fix=STATE,
        function="decoding.state.advance",
        change={"hidden=_select_or_keep(hidden, newest, state.hidden)": "hidden=hidden[:, -1]"},
    ),
    Mutant(
        name="hidden-one-row-late",
        bugs=("B53",),
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="The hidden state is one position late: it is that of the first rejected draft.",
        seen_in=STATE_ZERO,
        fix=STATE,
        function="decoding.state.advance",
        change={
            "hidden=_select_or_keep(hidden, newest,": "hidden=_select_or_keep(hidden, "
            "jnp.minimum(newest + 1, hidden.shape[1] - 1),"
        },
    ),
    Mutant(
        name="hidden-never-renewed",
        rank=1,
        shows_at="E2B/rounds/round0/hidden",
        effect="fewer accepted drafts",
        what="Rounds keep the hidden state of the prefill.",
        fix=STATE,
        function="decoding.state.advance",
        change={"hidden=_select_or_keep(hidden, newest, state.hidden)": "hidden=state.hidden"},
    ),
    Mutant(
        name="chained-hidden-before-the-norm",
        bugs=("B52",),
        rank=1,
        shows_at="E2B/draft/step0/post_projection",
        effect="fewer accepted drafts",
        what="post_projection reads the drafter's last layer instead of its final norm, which affects only later drafts.",
        seen_in=(
            Seen("ik_llama.cpp", "https://github.com/ikawrakow/ik_llama.cpp/pull/1993"),
            Seen("vLLM", "https://github.com/vllm-project/vllm/pull/47448"),
            Seen("ATOM", "https://github.com/ROCm/ATOM/pull/1764"),
        ),
        fix="post_projection(norm(x)): the head and post_projection read the same normed state.",
        function="drafter.model.Drafter.__call__",
        change={"self.post_projection(normed)": "self.post_projection(x)"},
    ),
    Mutant(
        name="hidden-not-chained",
        rank=1,
        shows_at="E2B/draft/block/tokens",
        effect="fewer accepted drafts",
        what="Every draft step gets the target's hidden state; the one that the step before it returned is ignored.",
        fix="Feed post_projection's result to the next draft step.",
        function="decoding.stages.draft.draft",
        change={"normed, hidden = step(": "normed, _ = step("},
    ),
)
