"""The shape of a Gemma 4 text decoder, as one frozen record.

Every branch of the formulas is chosen by a field of `Config`.  Field names are those of Hugging Face `config.json` files, which
`checkpoints/hf_config.py` reads.  `PRESETS` holds the five released sizes (source: the released configurations, verbatim in
`tests/data/configs`; a test compares).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of one decoder.  Sizes are counts; `sliding_window` and `max_position_embeddings` are in tokens.

    Errors: ValueError when fields contradict each other (see `__post_init__`).
    """

    vocab_size: int = 262_144
    hidden_size: int
    intermediate_size: int  # width of the gated MLP
    layer_types: tuple[str, ...]  # SLIDING or FULL, one a layer
    num_attention_heads: int
    num_key_value_heads: int  # in sliding layers, and in full ones unless the next field says otherwise
    num_global_key_value_heads: int | None = None
    head_dim: int = 256  # in sliding layers
    global_head_dim: int = 512  # in full layers
    attention_k_eq_v: bool = False  # k_eq_v: full layers take V from the raw key projection
    num_kv_shared_layers: int = 0  # the last n layers own no K/V and read an earlier layer's
    use_double_wide_mlp: bool = False  # ... and have an MLP of twice the width
    sliding_window: int = 512  # keys a query of a sliding layer sees, itself included
    sliding_rope_theta: float = 10_000.0
    full_rope_theta: float = 1_000_000.0
    partial_rotary_factor: float = 0.25  # share of the frequency pairs that rotate in full layers (proportional RoPE)
    hidden_size_per_layer_input: int = 0  # width of per-layer embeddings (PLE); 0: none
    vocab_size_per_layer_input: int = 262_144
    enable_moe_block: bool = False  # experts beside the dense MLP
    num_experts: int = 0
    top_k_experts: int = 0
    moe_intermediate_size: int = 0
    final_logit_softcapping: float | None = 30.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 131_072  # the context: prompt and new tokens together
    bos_token_id: int | None = 2
    pad_token_id: int = 0
    eos_token_ids: tuple[int, ...] = (1, 106)  # <eos> and <turn|>

    def __post_init__(self):
        check_layer_types(self.layer_types)
        for name in ("head_dim", "global_head_dim"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"{name}: expected an even number, because RoPE rotates pairs, got {getattr(self, name)}"
                )
        if not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(
                f"partial_rotary_factor: expected a number over 0 and up to 1, got {self.partial_rotary_factor}"
            )
        if not 0 <= self.num_kv_shared_layers <= self.num_hidden_layers:
            raise ValueError(
                f"num_kv_shared_layers: expected 0 to {self.num_hidden_layers} (the number of layers), "
                f"got {self.num_kv_shared_layers}"
            )
        for layer in range(self.num_hidden_layers):
            heads, kv_heads = self.num_attention_heads, self.kv_heads(layer)
            if heads % kv_heads:
                raise ValueError(f"layer {layer}: expected a multiple of {kv_heads} KV heads, got {heads} query heads")
        if self.enable_moe_block and not (0 < self.top_k_experts <= self.num_experts and self.moe_intermediate_size):
            raise ValueError(
                "enable_moe_block needs moe_intermediate_size, num_experts and top_k_experts (at most num_experts), "
                f"got {self.moe_intermediate_size}, {self.num_experts} and {self.top_k_experts}"
            )
        if self.hidden_size_per_layer_input and self.vocab_size_per_layer_input < self.vocab_size:
            raise ValueError(
                f"vocab_size_per_layer_input: expected at least vocab_size ({self.vocab_size}), because each token has a row "
                f"in that table, got {self.vocab_size_per_layer_input}"
            )

    # -- derived facts -------------------------------------------------------------------------------------------------

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    @property
    def first_kv_shared_layer(self) -> int:
        """Layers from this one on own no K/V."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    @property
    def kv_source(self) -> tuple[int | Any, ...]:
        """For each layer, the layer whose K/V it reads: itself, or the last owner of the same type (shared K/V).

        None where this stack holds no owner of that type: a drafter, whose layers all read the target's cache.
        """
        last_owners = self._last_owners()
        return tuple(
            layer if layer < self.first_kv_shared_layer else last_owners.get(kind)
            for layer, kind in enumerate(self.layer_types)
        )

    @property
    def donors(self) -> dict[str, int]:
        """KV sharing: the last layer of each type that owns K/V, e.g. {sliding: 13, full: 14} for E2B.

        Later layers of the target read its K/V, and so does the drafter.
        """
        return self._last_owners()

    def _last_owners(self) -> dict[str, int]:
        """The last layer of each type that owns K/V."""
        owners = self.layer_types[: self.first_kv_shared_layer]
        return {kind: layer for layer, kind in enumerate(owners)}

    def is_sliding(self, layer: int) -> bool:
        return self.layer_types[layer] == SLIDING

    def layer_head_dim(self, layer: int) -> int:
        return self.head_dim if self.is_sliding(layer) else self.global_head_dim

    def kv_heads(self, layer: int) -> int:
        # transformers 5.22.2: the separate count applies only where k_eq_v does.
        if self.is_sliding(layer) or not self.attention_k_eq_v:
            return self.num_key_value_heads
        return self.num_global_key_value_heads or self.num_key_value_heads

    def rope(self, kind: str) -> tuple[int, float, float]:
        """Head size, theta and share of rotating pairs: the arguments of `functional.rope_cos_sin`."""
        if kind == SLIDING:
            return self.head_dim, self.sliding_rope_theta, 1.0
        return self.global_head_dim, self.full_rope_theta, self.partial_rotary_factor

    def k_eq_v(self, layer: int) -> bool:
        """Whether V is the raw key projection: in full layers of 12B, 26B-A4B and 31B."""
        return self.attention_k_eq_v and not self.is_sliding(layer)

    def mlp_width(self, layer: int) -> int:
        is_shared = layer >= self.first_kv_shared_layer
        return self.intermediate_size * (2 if self.use_double_wide_mlp and is_shared else 1)


def check_layer_types(types: Sequence[Any]) -> None:
    # transformers makes a sliding last layer a full one, with only a warning.
    if not types or any(kind not in (SLIDING, FULL) for kind in types) or types[-1] != FULL:
        raise ValueError(f"layer_types: expected {SLIDING} and {FULL}, the last one full, got {tuple(types)!r:.200}")


def interleave(sliding: int, layers: int) -> tuple[str, ...]:
    """`sliding` sliding layers, then a full one, and so on; the last layer is always full."""
    types = [FULL if (layer + 1) % (sliding + 1) == 0 else SLIDING for layer in range(layers)]
    return (*types[:-1], FULL)


def five_to_one(layers: int) -> tuple[str, ...]:
    return interleave(5, layers)


PRESETS: dict[str, Config] = {
    "E2B": Config(
        hidden_size=1536,
        intermediate_size=6144,
        layer_types=interleave(4, 35),
        num_attention_heads=8,
        num_key_value_heads=1,
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=256,
    ),
    "E4B": Config(
        hidden_size=2560,
        intermediate_size=10_240,
        layer_types=five_to_one(42),
        num_attention_heads=8,
        num_key_value_heads=2,
        num_kv_shared_layers=18,
        hidden_size_per_layer_input=256,
    ),
    "12B": Config(
        hidden_size=3840,
        intermediate_size=15_360,
        layer_types=five_to_one(48),
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=1024,
        max_position_embeddings=262_144,
    ),
    "26B-A4B": Config(
        hidden_size=2816,
        intermediate_size=2112,
        layer_types=five_to_one(30),
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        enable_moe_block=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
        sliding_window=1024,
        max_position_embeddings=262_144,
    ),
    "31B": Config(
        hidden_size=5376,
        intermediate_size=21_504,
        layer_types=five_to_one(60),
        num_attention_heads=32,
        num_key_value_heads=16,
        num_global_key_value_heads=4,
        attention_k_eq_v=True,
        sliding_window=1024,
        max_position_embeddings=262_144,
    ),
}
