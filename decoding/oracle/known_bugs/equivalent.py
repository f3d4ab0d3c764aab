"""Other ways to the same result: code that reviewers, bots and users took for bugs, and plain rewritings.

None of these may be flagged.  The first group is the catalogue's false alarms; the second is what authors of other engines do
differently and correctly.
"""

from decoding.oracle.known_bugs.mutant import Equivalent, Seen

FALSE_ALARMS = (
    Equivalent(
        name="softmax-before-top-k",
        what="Softmax over all tokens, then top-k, then renormalised: algebraically the softmax of the top-k logits.",
        seen_in=(Seen("mlx-swift-lm", "https://github.com/ml-explore/mlx-swift-lm/pull/228"),),
        tried_at="E2B/law",
        function="decoding.sampling.token_probs",
        change={
            "    if sampling.has_top_k": (
                "    full = jax.nn.softmax(logits / sampling.temperature, axis=-1)\n    if sampling.has_top_k"
            ),
            "    return jax.nn.softmax(logits, axis=-1)": "    kept = jnp.where(jnp.isneginf(logits), 0, full)\n"
            "    return kept / kept.sum(axis=-1, keepdims=True)",
        },
    ),
    Equivalent(
        name="attention-scale-folded-into-the-query",
        what="Scores are divided by sqrt(head_dim), and queries multiplied by it before: the scale is 1 after all.",
        seen_in=(Seen("mlc-llm", "https://github.com/mlc-ai/mlc-llm/pull/3485"),),
        function="gemma4.functional.attention",
        change={
            "grouped = rearrange(query,": "grouped = rearrange(query * query.shape[-1] ** 0.5,",
            "grouped, key).astype(jnp.float32)": "grouped, key).astype(jnp.float32) * query.shape[-1] ** -0.5",
        },
    ),
    Equivalent(
        name="draft-matched-with-the-targets-sample",
        what="A draft is accepted if it is the target's own sample, and if not, that same sample is emitted.",
        seen_in=(
            Seen("mlx-swift-lm", "https://github.com/ml-explore/mlx-swift-lm/pull/459"),
            Seen("TensorRT-LLM", "https://github.com/NVIDIA/TensorRT-LLM/pull/15775"),
        ),
        tried_at="E2B/accept",
        function="decoding.stages.accept.decide",
        change={
            "uniforms[:, :-1] * q < p": "draft_tokens == kernels.sample_from(target_probs, uniforms)[:, :-1]",
            "kernels.sample_from(residual(p_there, q_there), uniforms[:, -1])": "select_position("
            "kernels.sample_from(target_probs, uniforms), num_accepted)",
        },
        same_at=(),
    ),
    Equivalent(
        name="cache-free-pass-through-a-cache",
        what="A pass without a cache makes its own cache: sharing layers read the same K/V either way.",
        seen_in=(Seen("unsloth", "https://github.com/unslothai/unsloth/pull/6502"),),
        function="gemma4.model.Gemma4.__call__",
        change={
            "        config = self.config\n": "        from gemma4.cache import init_cache\n\n        config = self.config\n"
            "        cache = cache or init_cache(config, *tokens.shape)\n"
        },
    ),
    Equivalent(
        name="clusters-filled-just-below",
        bugs=("B89",),
        what="Tokens outside the best clusters get the lowest scored logit minus 1: the same greedy drafts.  (All tokens get "
        "some probability then, and acceptance must receive that distribution where drafts are sampled.)",
        seen_in=(
            Seen("SGLang", "https://github.com/sgl-project/sglang/pull/24436"),
            Seen("transformers", "https://github.com/huggingface/transformers"),
        ),
        tried_at="E2B/draft",
        function="drafter.clustering.scatter_logits",
        change={"-jnp.inf": "logits.min() - 1"},
    ),
    Equivalent(
        name="clusters-filled-with-a-large-number",
        what="Tokens outside the best clusters get -1e30: probability 0, as with -inf.",
        seen_in=(Seen("Ollama", "https://github.com/ollama/ollama"),),
        tried_at="E2B/draft",
        function="drafter.clustering.scatter_logits",
        change={"-jnp.inf": "-1e30"},
    ),
    Equivalent(
        name="drafter-logits-soft-capped",
        what="A soft cap on the drafter's logits keeps their order, and so every greedy draft.",
        seen_in=(
            Seen("vLLM", "https://github.com/vllm-project/vllm"),
            Seen("keras-hub", "https://github.com/keras-team/keras-hub"),
        ),
        tried_at="26B-A4B/draft",
        function="drafter.model.Drafter.dense_logits",
        change={
            "return (normed @ self.embed_tokens.weight[...].T).astype(jnp.float32)": "return 30 * jnp.tanh("
            "(normed @ self.embed_tokens.weight[...].T).astype(jnp.float32) / 30)"
        },
        same_at=("draft/block/tokens", "draft/block/told"),
    ),
    Equivalent(
        name="products-rounded-otherwise",
        what="Sums in another order, as on every other device: rounding, not a bug.",
        seen_in=(Seen("mlx-swift-lm", "https://github.com/ml-explore/mlx-swift-lm/commit/83f3ef6d"),),
        function="gemma4.layers.Linear.__call__",
        change={
            "x @ self.weight[...]": "x[..., ::2] @ self.weight[...][::2] + x[..., 1::2] @ self.weight[...][1::2]",
        },
    ),
    Equivalent(
        name="verified-one-by-one",
        bugs=("B39",),
        what="Verify runs one token at a time: other kernels and other rounding, the same scores of every draft.",
        seen_in=(
            Seen("Rapid-MLX", "https://github.com/raullenchai/Rapid-MLX/issues/3295"),
            Seen("llama.cpp", "https://github.com/ggml-org/llama.cpp/issues/25618"),
        ),
        tried_at="E2B/verify",
        function="decoding.stages.verify.verify",
        change={
            "    hidden, cache = target(tokens, cache)\n": """\
    parts = []
    for i in range(tokens.shape[1]):
        part, cache = target(tokens[:, i : i + 1], cache)
        parts.append(part)
    hidden = jnp.concatenate(parts, axis=1)
"""
        },
    ),
)

REWRITINGS = (
    Equivalent(
        name="router-softmax-over-the-chosen",
        what="The router takes the softmax over its top-k scores only, which equals the renormalised softmax.",
        tried_at="26B-A4B/forward",
        function="gemma4.moe.Router.__call__",
        change={
            "probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)": "probs = scores.astype(jnp.float32)",
            "weights = weights / weights.sum(axis=-1, keepdims=True)": "weights = jax.nn.softmax(weights, axis=-1)",
        },
    ),
    Equivalent(
        name="heads-repeated",
        what="K/V heads are repeated for their queries; queries are not grouped.",
        function="gemma4.functional.attention",
        change={
            'grouped = rearrange(query, "b t (k g) h -> b k g t h", k=key.shape[1])': (
                "group = query.shape[2] // key.shape[1]\n"
                "    key, value = jnp.repeat(key, group, axis=1), jnp.repeat(value, group, axis=1)\n"
                '    grouped = rearrange(query, "b t k h -> b k 1 t h")'
            )
        },
    ),
    Equivalent(
        name="masked-with-minus-infinity",
        what="Masked scores are -inf, not the lowest finite number: every query sees at least itself.",
        function="gemma4.functional.attention",
        change={"jnp.finfo(jnp.float32).min": "-jnp.inf"},
    ),
    Equivalent(
        name="window-by-distance",
        what="The window is a bound on the distance: q - k < window.",
        function="gemma4.functional.attention_mask",
        change={"(key > query - window)": "(query - key < window)"},
    ),
    Equivalent(
        name="rope-as-complex-numbers",
        what="Pairs are rotated as complex numbers.",
        tried_at="E2B/rope",
        function="gemma4.functional.apply_rope",
        change={
            "return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)": "rotated = "
            "(first + 1j * second) * (cos + 1j * sin)\n    return jnp.concatenate([rotated.real, rotated.imag], axis=-1)"
        },
    ),
    Equivalent(
        name="gelu-by-sigmoid",
        what="The tanh of GELU written as a sigmoid.",
        function="gemma4.functional.gelu",
        change={
            "jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)": "(x * jax.nn.sigmoid("
            "2 * (2 / np.pi) ** 0.5 * (x.astype(jnp.float32) + 0.044715 * x.astype(jnp.float32) ** 3))).astype(x.dtype)"
        },
    ),
    Equivalent(
        name="norm-by-square-root",
        what="x is divided by the square root, not multiplied by its inverse.",
        function="gemma4.functional.rms_norm",
        change={
            "x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)": "x32 / jnp.sqrt("
            "jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)"
        },
    ),
    Equivalent(
        name="every-expert-for-every-token",
        what="All experts compute all tokens, one expert after the other; those that the router did not choose get weight 0.",
        tried_at="26B-A4B/forward",
        function="gemma4.moe.experts_dense",
        change={
            """
    inner = gated(jnp.einsum("btd,efd->btef", x, gate_up_proj))
    out = jnp.einsum("btef,edf->bted", inner, down_proj)
""": """
    outputs = [gated(x @ gate_up.T) @ down.T for gate_up, down in zip(gate_up_proj, down_proj, strict=True)]
    out = jnp.stack(outputs, axis=2)
"""
        },
    ),
    Equivalent(
        name="only-the-chosen-experts",
        what="Each token runs through its own experts only, the computation that saves the work of the others.",
        tried_at="26B-A4B/forward",
        function="gemma4.moe.experts_dense",
        change={
            """
    inner = gated(jnp.einsum("btd,efd->btef", x, gate_up_proj))
    out = jnp.einsum("btef,edf->bted", inner, down_proj)
    one_hot = jax.nn.one_hot(experts, out.shape[2], dtype=weights.dtype)
    einsum_f32 = functools.partial(jnp.einsum, precision="highest")  # GPUs and TPUs round the factors by default
    per_expert = einsum_f32("btc,btce->bte", weights, one_hot)
    return einsum_f32("bte,bted->btd", per_expert, out.astype(jnp.float32)).astype(x.dtype)
""": """
    inner = gated(jnp.einsum("btd,btcfd->btcf", x, gate_up_proj[experts]))
    out = jnp.einsum("btcf,btcdf->btcd", inner, down_proj[experts])
    return jnp.einsum("btc,btcd->btd", weights, out)
"""
        },
    ),
    Equivalent(
        name="ratio-as-a-division",
        what="Acceptance compares u with p / q, by a division.",
        tried_at="E2B/accept",
        function="decoding.stages.accept.decide",
        change={"uniforms[:, :-1] * q < p": "uniforms[:, :-1] < p / q"},
    ),
    Equivalent(
        name="residual-renormalised",
        what="The residual is divided by its sum before the draw.",
        tried_at="E2B/accept",
        function="decoding.stages.accept.residual",
        change={
            "    return jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)": (
                "    total = rest.sum(axis=-1, keepdims=True)\n"
                "    return jnp.where(total > 0, rest / jnp.where(total > 0, total, 1), target_probs)"
            )
        },
    ),
)

EQUIVALENT = FALSE_ALARMS + REWRITINGS
