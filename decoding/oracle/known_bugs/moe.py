"""The mixture of experts: the inputs of router and experts, and the weights of the experts' outputs."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MAXTEXT = Seen("MaxText", "https://github.com/AI-Hypercomputer/maxtext/commit/014fc4985")
SILU = (
    Seen("vllm-ascend", "https://github.com/vllm-project/vllm-ascend/commit/eb0ce34e98"),
    Seen("imp", "https://github.com/kekzl/imp/pull/9"),
)

MUTANTS = (
    Mutant(
        name="router-reads-the-experts-norm",
        bugs=("B34",),
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_scores",
        what="The router gets pre_feedforward_layernorm_2 of the residual: normed twice, it chooses wrong experts.",
        seen_in=(
            Seen("Automodel", "https://github.com/NVIDIA-NeMo/Automodel/issues/1852"),
            Seen("tunix", "https://github.com/google/tunix/commit/e31e280e"),
        ),
        fix="The router reads the raw residual and applies its own norm.",
        function="gemma4.model.DecoderLayer._mixture",
        change={"self.router(residual, tap)": "self.router(self.pre_feedforward_layernorm_2(residual), tap)"},
    ),
    Mutant(
        name="branches-share-one-norm",
        bugs=("B38",),
        rank=6,
        shows_at="26B-A4B/forward/layers.0.experts",
        what="The experts read the dense MLP's pre_feedforward_layernorm.",
        seen_in=(Seen("Megatron-Bridge", "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4683"),),
        fix="pre_feedforward_layernorm for the MLP, pre_feedforward_layernorm_2 for the experts, none for the router.",
        function="gemma4.model.DecoderLayer._mixture",
        change={"self.experts(self.pre_feedforward_layernorm_2(": "self.experts(self.pre_feedforward_layernorm("},
    ),
    Mutant(
        name="expert-scale-missing",
        bugs=("B35",),
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_weights",
        what="per_expert_scale is not applied.",
        seen_in=(MAXTEXT, Seen("mobius", "https://github.com/onnxruntime/mobius/pull/546")),
        fix="Multiply each chosen weight by its expert's scale, after renormalising, once.",
        function="gemma4.moe.Router.__call__",
        change={"weights * self.per_expert_scale[...].astype(jnp.float32)[experts]": "weights"},
    ),
    Mutant(
        name="expert-scale-twice",
        bugs=("B35",),
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_weights",
        what="per_expert_scale is applied to the weights and folded into the experts.",
        seen_in=(MAXTEXT,),
        fix="Multiply each chosen weight by its expert's scale, after renormalising, once.",
        function="gemma4.moe.Router.__call__",
        change={"astype(jnp.float32)[experts]": "astype(jnp.float32)[experts] ** 2"},
    ),
    Mutant(
        name="experts-use-silu",
        bugs=("B36",),
        rank=6,
        shows_at="26B-A4B/forward/layers.0.experts",
        what="Experts gate with SiLU, which was built into a fused kernel.",
        seen_in=SILU,
        fix="gelu_pytorch_tanh in the experts, as in the dense MLP.",
        function="gemma4.moe.gated",
        change={"return gelu(gate) * up": "return jax.nn.silu(gate) * up"},
    ),
    Mutant(
        name="router-weights-not-renormalised",
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_weights",
        effect="nothing",
        what="The chosen experts keep their share of the softmax over all experts.  The next norm cancels it.",
        fix="Renormalise the top k to sum 1.",
        function="gemma4.moe.Router.__call__",
        change={"weights = weights / weights.sum(axis=-1, keepdims=True)": "pass"},
    ),
    Mutant(
        name="router-scale-missing",
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_scores",
        what="The router's input is not divided by sqrt(d).",
        fix="norm(residual) * scale / sqrt(d).",
        function="gemma4.moe.Router.__call__",
        change={"residual.shape[-1] ** -0.5": "1.0"},
    ),
    Mutant(
        name="router-scale-vector-missing",
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_scores",
        what="The router's input is not multiplied by `scale`, a vector that serves as the norm's weight.",
        fix="norm(residual) * scale / sqrt(d).",
        function="gemma4.moe.Router.__call__",
        change={"rms_norm(residual, None, self.eps) * self.scale[...]": "rms_norm(residual, None, self.eps)"},
    ),
    Mutant(
        name="router-input-not-normed",
        rank=6,
        shows_at="26B-A4B/forward/layers.0.router_scores",
        what="The router's own norm, which has no weight and so no tensor in the checkpoint, is left out.",
        fix="norm(residual) * scale / sqrt(d).",
        function="gemma4.moe.Router.__call__",
        change={"rms_norm(residual, None, self.eps)": "residual"},
    ),
    Mutant(
        name="experts-not-normed-behind",
        rank=6,
        shows_at="26B-A4B/forward/layers.0.after_mlp",
        what="post_feedforward_layernorm_2 is left out: the experts' sum is added to the dense MLP's output without a norm.",
        fix="A norm after each branch (_1 for the dense MLP, _2 for the experts), and one more after their sum.",
        function="gemma4.model.DecoderLayer._mixture",
        change={"return self.post_feedforward_layernorm_2(out)": "return out"},
    ),
    Mutant(
        name="gate-and-up-of-experts-swapped",
        rank=6,
        shows_at="26B-A4B/forward/layers.0.experts",
        what="The stacked gate_up_proj is split in the wrong order.",
        fix="Gate comes first, then up.",
        function="gemma4.moe.gated",
        change={"gate, up = ": "up, gate = "},
    ),
    Mutant(
        name="double-width-ignored",
        bugs=("B38",),
        rank=6,
        shows_at="E2B/forward/layers.3.mlp",
        what="Layers that share K/V get an MLP of single width: half of their MLP weights are lost.",
        seen_in=(Seen("Megatron-Bridge", "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4683"),),
        fix="use_double_wide_mlp doubles intermediate_size in layers that share K/V.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "for i, layer in enumerate(self.layers):\n": """\
for i, layer in enumerate(self.layers):
            if config.mlp_width(i) > config.intermediate_size:
                from gemma4.checkpoints.params import with_params

                half = layer.mlp.down_proj.weight[...].at[config.intermediate_size :].set(0)
                layer = with_params(layer, {"mlp.down_proj.weight": half})
"""
        },
    ),
)
