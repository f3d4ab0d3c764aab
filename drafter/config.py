"""The shape of an MTP drafter, and which of the two conventions in the wild it follows.

`PRESETS` holds the drafters of the five released sizes (figures: the released configurations, `tests/data/configs`).
"""

import dataclasses

from gemma4 import config as gemma4_config

TRANSFORMERS = "transformers"
VLLM = "vllm"
CONVENTIONS = (TRANSFORMERS, VLLM)

# What no released drafter has.  Engines differ there: with a soft cap, transformers would leave it out and vLLM would not.
NOT_IN_A_DRAFTER = {
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "final_logit_softcapping": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """`text` describes the drafter's own layers: all of them share K/V, so they own none and read the target's.

    convention: with n tokens in the target's cache and the token to continue from at index n,
        "transformers" (5.22.2, also KerasHub and mlx-swift-lm) drafts at position n and sees the last window + 1 positions in
        sliding layers; "vllm" (also SGLang, Ollama, tpu-inference) drafts at n - 1 and sees the last window positions.
        `Drafter.attention_inputs` applies it.
        Google's documentation does not say which one the released drafters were trained with.
    """

    text: gemma4_config.Config
    backbone_hidden_size: int  # the target's hidden_size
    use_ordered_embeddings: bool = False  # the clustered head
    num_centroids: int = 2048
    centroid_intermediate_top_k: int = 32  # clusters scored for each token
    convention: str = TRANSFORMERS

    def __post_init__(self):
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {self.convention!r}")
        if self.text.num_kv_shared_layers != self.text.num_hidden_layers:
            raise ValueError(
                f"a drafter's layers all read the target's K/V: expected num_kv_shared_layers = "
                f"{self.text.num_hidden_layers}, got {self.text.num_kv_shared_layers}"
            )
        for name, expected in NOT_IN_A_DRAFTER.items():
            if (value := getattr(self.text, name)) != expected:
                raise ValueError(f"{name}: expected {expected} as in every released drafter, got {value}")
        if self.use_ordered_embeddings and self.text.vocab_size % self.num_centroids:
            raise ValueError(
                f"num_centroids: expected a divisor of the {self.text.vocab_size} tokens, got {self.num_centroids}"
            )
        if self.use_ordered_embeddings and not 0 < self.centroid_intermediate_top_k <= self.num_centroids:
            raise ValueError(
                f"centroid_intermediate_top_k: expected 1 to {self.num_centroids}, got {self.centroid_intermediate_top_k}"
            )

    def check_fits(self, target: gemma4_config.Config) -> None:
        """Errors: ValueError that names what differs, unless this drafter can read `target`'s cache and embeddings."""
        pairs: dict[str, tuple[object, object]] = {
            "backbone_hidden_size / hidden_size": (self.backbone_hidden_size, target.hidden_size),
            "vocab_size": (self.text.vocab_size, target.vocab_size),
            "sliding_window": (self.text.sliding_window, target.sliding_window),
        }
        for layer, kind in enumerate(self.text.layer_types):
            if kind not in target.donors:
                raise ValueError(f"drafter and target do not fit: the target has no {kind} layer that owns K/V")
            donor = target.donors[kind]
            pairs[f"{kind} head_dim"] = (self.text.layer_head_dim(layer), target.layer_head_dim(donor))
            pairs[f"{kind} KV heads"] = (self.text.kv_heads(layer), target.kv_heads(donor))
            pairs[f"{kind} RoPE"] = (self.text.rope(kind), target.rope(kind))
        wrong = [f"{name}: drafter {ours}, target {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
        if wrong:
            raise ValueError(
                f"drafter and target do not fit ({'; '.join(wrong)}); use the drafter made for this target"
            )


def config_for(
    target: gemma4_config.Config,
    *,
    width: int,
    mlp: int,
    heads: int,
    clusters: tuple[int, int] | None = None,
    layers: tuple[str, ...] = gemma4_config.interleave(3, 4),
    context: int | None = None,
) -> Config:
    """A drafter over `target`'s K/V: whatever concerns K/V is the target's, the rest is the drafter's own.

    clusters: how many, and how many of them are scored; None for a dense head.
    context:  max_position_embeddings; the target's unless given.
    """
    text = dataclasses.replace(
        target,
        hidden_size=width,
        intermediate_size=mlp,
        layer_types=layers,
        num_attention_heads=heads,
        num_kv_shared_layers=len(layers),
        **NOT_IN_A_DRAFTER,
        vocab_size_per_layer_input=0,
        num_experts=0,
        top_k_experts=0,
        moe_intermediate_size=0,
        max_position_embeddings=target.max_position_embeddings if context is None else context,
        eos_token_ids=target.eos_token_ids[:1],
    )
    num_centroids, top_k = clusters or (2048, 32)  # the numbers that released files of dense heads have all the same
    return Config(
        text=text,
        backbone_hidden_size=target.hidden_size,
        use_ordered_embeddings=clusters is not None,
        num_centroids=num_centroids,
        centroid_intermediate_top_k=top_k,
    )


PRESETS: dict[str, Config] = {
    name: config_for(gemma4_config.PRESETS[name], width=width, mlp=mlp, heads=heads, clusters=clusters, context=context)
    for name, width, mlp, heads, clusters, context in (
        ("E2B", 256, 2048, 4, (2048, 32), 131_072),
        ("E4B", 256, 2048, 4, (2048, 32), 131_072),
        ("12B", 1024, 8192, 16, None, 262_144),
        ("26B-A4B", 1024, 8192, 16, None, 131_072),
        ("31B", 1024, 8192, 32, None, 262_144),
    )
}
