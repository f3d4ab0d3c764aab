"""The shape of a Gemma 4 text decoder, as one frozen record.

Every branch of the formulas is chosen by a field of `Config`.  (How they are computed depends on lengths and on the machine,
too: `long_attention.is_long`, `Gemma4.with_head`.)  Field names are those of Hugging Face `config.json` files.  `PRESETS`
holds the five released sizes (figures: the released configurations; `tests/data/configs` has them verbatim and a test
compares).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

SLIDING = "sliding_attention"
FULL = "full_attention"

TEXT_MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


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
    attention_k_eq_v: bool = False  # full layers take V from the raw key projection
    num_kv_shared_layers: int = 0  # the last n layers own no K/V and read an earlier layer's
    use_double_wide_mlp: bool = False  # ... and have an MLP of twice the width
    sliding_window: int = 512  # keys a query of a sliding layer sees, itself included
    sliding_rope_theta: float = 10_000.0
    full_rope_theta: float = 1_000_000.0
    partial_rotary_factor: float = 0.25  # share of the frequency pairs that rotate in full layers
    hidden_size_per_layer_input: int = 0  # 0: no per-layer embeddings
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
        _check_layer_types(self.layer_types)
        for name in ("head_dim", "global_head_dim"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} must be even, for RoPE turns pairs, got {getattr(self, name)}")
        if not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(f"partial_rotary_factor must lie in (0, 1], got {self.partial_rotary_factor}")
        if not 0 <= self.num_kv_shared_layers <= self.num_hidden_layers:
            raise ValueError(
                f"num_kv_shared_layers must lie in 0..{self.num_hidden_layers} (the number of layers), "
                f"got {self.num_kv_shared_layers}"
            )
        for layer in range(self.num_hidden_layers):
            heads, kv_heads = self.num_attention_heads, self.kv_heads(layer)
            if heads % kv_heads:
                raise ValueError(f"layer {layer}: {heads} query heads cannot be shared out among {kv_heads} KV heads")
        if self.enable_moe_block and not (0 < self.top_k_experts <= self.num_experts and self.moe_intermediate_size):
            raise ValueError(
                "enable_moe_block needs moe_intermediate_size, num_experts and top_k_experts (at most num_experts), "
                f"got {self.moe_intermediate_size}, {self.num_experts} and {self.top_k_experts}"
            )
        if self.hidden_size_per_layer_input and self.vocab_size_per_layer_input < self.vocab_size:
            raise ValueError(
                f"vocab_size_per_layer_input must be at least vocab_size ({self.vocab_size}), "
                f"for each token has a row in that table; got {self.vocab_size_per_layer_input}"
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
    def last_kv_owner(self) -> int:
        """The last layer that owns K/V: behind it nothing is written, so that a token's output concerns no other token."""
        return self.first_kv_shared_layer - 1

    @property
    def kv_source(self) -> tuple[int | None, ...]:
        """For each layer, the layer whose K/V it reads: itself, or the last earlier owner of the same type.

        None where this stack holds no owner of that type: a drafter, whose layers all read the target's cache.
        """
        owners = self.layer_types[: self.first_kv_shared_layer]
        last_owner = {kind: layer for layer, kind in enumerate(owners)}
        return tuple(
            layer if layer < self.first_kv_shared_layer else last_owner.get(kind)
            for layer, kind in enumerate(self.layer_types)
        )

    @property
    def donors(self) -> dict[str, int]:
        """The two layers a drafter reads: the last K/V owner of each type, e.g. {sliding: 13, full: 14} for E2B."""
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
        """Head size, theta and share of turning pairs: the arguments of `functional.rope_angles`."""
        if kind == SLIDING:
            return self.head_dim, self.sliding_rope_theta, 1.0
        return self.global_head_dim, self.full_rope_theta, self.partial_rotary_factor

    def has_v_proj(self, layer: int) -> bool:
        return self.is_sliding(layer) or not self.attention_k_eq_v

    def mlp_width(self, layer: int) -> int:
        # A stack that shares every layer (a drafter) is never double-wide (transformers 5.22.2, `0 < first_shared`).
        is_shared = layer >= self.first_kv_shared_layer > 0
        return self.intermediate_size * (2 if self.use_double_wide_mlp and is_shared else 1)

    # -- Hugging Face --------------------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Config":
        """Read a target's `config.json`, nested under `text_config` or plain.

        Full layers' sizes come from `global_head_dim` and `num_global_key_value_heads` or, in files that newer
        transformers write, from `per_layer_config`.  Errors: ValueError that names the field.
        """
        outer_type = config.get("model_type")
        text = config.get("text_config") or config
        if not isinstance(text, Mapping):
            raise ValueError(f"text_config: expected an object, got {text!r}")
        model_type = text.get("model_type", outer_type)
        if outer_type not in TEXT_MODEL_TYPES and outer_type is not None or model_type not in TEXT_MODEL_TYPES:
            raise ValueError(
                f"model_type: expected one of {', '.join(TEXT_MODEL_TYPES)}, got {outer_type or model_type!r}; "
                "this is not the configuration of a Gemma 4 target"
            )
        # The released files name more end tokens outside text_config than inside; the outer ones end a text.
        ends = config.get("eos_token_id", text.get("eos_token_id", 1))
        read = from_text_config(cls, {**text, "eos_token_id": ends}, config)
        if None in read.kv_source:
            raise ValueError(
                f"num_kv_shared_layers: expected an owner of K/V before every layer of its type that shares them, got "
                f"{read.num_kv_shared_layers} of {read.num_hidden_layers} layers shared; only a drafter shares them all"
            )
        return read

    def to_hf(self) -> dict[str, Any]:
        """The plain `config.json` that transformers reads as `Gemma4ForCausalLM`."""
        ours = dataclasses.asdict(self)
        rope = {
            SLIDING: {"rope_type": "default", "rope_theta": ours.pop("sliding_rope_theta")},
            FULL: {
                "rope_type": "proportional",
                "rope_theta": ours.pop("full_rope_theta"),
                "partial_rotary_factor": ours.pop("partial_rotary_factor"),
            },
        }
        eos = ours.pop("eos_token_ids")
        moe = {k: ours[k] or None for k in ("num_experts", "top_k_experts", "moe_intermediate_size")}
        return {
            "architectures": ["Gemma4ForCausalLM"],
            "model_type": "gemma4_text",
            **ours,
            **moe,
            "layer_types": list(self.layer_types),
            "num_hidden_layers": self.num_hidden_layers,
            "rope_parameters": rope,
            "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "tie_word_embeddings": True,
        }


_MAY_BE_ZERO = {
    "num_kv_shared_layers",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "num_experts",
    "top_k_experts",
    "moe_intermediate_size",
}
_TOKEN_IDS = {"bos_token_id", "pad_token_id", "eos_token_ids"}


def check_kind(field: dataclasses.Field, value: Any) -> None:
    """A JSON file may hold anything: refuse here what would fail later without naming the field."""
    is_whole = lambda item: isinstance(item, int) and not isinstance(item, bool)
    if value is None and field.type in (int | None, float | None):
        return
    if field.type is bool and not isinstance(value, bool):
        raise ValueError(f"{field.name} must be true or false, got {value!r}")
    if field.type in (float, float | None) and not ((is_whole(value) or isinstance(value, float)) and value > 0):
        raise ValueError(f"{field.name} must be a positive number, got {value!r}")
    if field.name in _TOKEN_IDS:
        ids = value if isinstance(value, tuple) else (value,)
        if not all(is_whole(item) and 0 <= item < 2**31 for item in ids):
            raise ValueError(f"{field.name}: expected token ids in 0..{2**31 - 1}, got {value!r}")
        return
    least = 0 if field.name in _MAY_BE_ZERO else 1
    if field.type in (int, int | None) and not (is_whole(value) and value >= least):
        raise ValueError(f"{field.name} must be a whole number of at least {least}, got {value!r}")


def from_text_config(cls: type[Config], text: Mapping[str, Any], outer: Mapping[str, Any]) -> Config:
    """Fields of one `gemma4_text` mapping: a target's, or the one inside a drafter's file.

    outer: the whole file, which is `text` itself in a plain one.
    """
    _refuse_unsupported(text)
    _refuse_unsupported(outer)  # transformers goes by the tie_word_embeddings that stands here
    fields = {}
    for field in dataclasses.fields(cls):
        value = text.get(field.name)
        if value is not None:
            fields[field.name] = value
        elif field.default is dataclasses.MISSING and field.name != "layer_types":
            raise ValueError(f"{field.name}: missing from the configuration; a gemma4_text config.json has it")
    fields["layer_types"] = _layer_types(text)
    fields["final_logit_softcapping"] = text.get("final_logit_softcapping")
    fields["bos_token_id"] = text.get("bos_token_id", 2)
    eos = text.get("eos_token_id", 1)
    fields["eos_token_ids"] = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    fields |= _full_layer_sizes(text, fields["layer_types"])
    rope = _rope(text)
    fields["sliding_rope_theta"] = rope[SLIDING].get("rope_theta", 10_000.0)
    fields["full_rope_theta"] = rope[FULL].get("rope_theta", 1_000_000.0)
    # A file that leaves the factor out means the released value, not 1.0 (mlx-lm #1114 took 1.0, and so does transformers
    # 5.22.2, with a warning, where only the entry stands in the file and not the factor).
    fields["partial_rotary_factor"] = rope[FULL].get("partial_rotary_factor", 0.25)
    for field in dataclasses.fields(cls):
        check_kind(field, fields.get(field.name, field.default))
    return cls(**fields)


def _refuse_unsupported(text: Mapping[str, Any]) -> None:
    expected = {
        "hidden_activation": (None, "gelu_pytorch_tanh"),
        "attention_bias": (None, False),
        "tie_word_embeddings": (None, True),
        "use_bidirectional_attention": (None, "vision"),  # "vision" concerns image tokens only
    }
    for name, allowed in expected.items():
        if text.get(name) not in allowed:
            raise ValueError(f"{name}: expected {allowed[-1]!r} as in every released Gemma 4, got {text[name]!r}")


def _rope(text: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """`rope_parameters` by layer type.  Stretched variants (yarn, linear, ...) are refused: we have no formula for them."""
    if text.get("rope_scaling") is not None:
        raise ValueError(f"rope_scaling: expected none as in every released Gemma 4, got {text['rope_scaling']!r}")
    rope = {} if text.get("rope_parameters") is None else text["rope_parameters"]
    if not isinstance(rope, Mapping) or set(rope) - {SLIDING, FULL}:
        raise ValueError(f"rope_parameters: expected an object with {SLIDING} and {FULL} alone, got {rope!r}")
    by_type = {}
    for kind, expected in ((SLIDING, "default"), (FULL, "proportional")):
        by_type[kind] = rope.get(kind) or {}
        if not isinstance(by_type[kind], Mapping) or by_type[kind].get("rope_type", expected) != expected:
            raise ValueError(f"rope_parameters: expected rope_type {expected!r} for {kind}, got {rope}")
        if by_type[kind].get("factor", 1.0) != 1.0:
            raise ValueError(f"rope_parameters: expected no factor for {kind}, got {rope}")
    return by_type


def _layer_types(text: Mapping[str, Any]) -> tuple[str, ...]:
    types = text.get("layer_types")
    count = text.get("num_hidden_layers")
    if count is not None and (type(count) is not int or count < 1):  # True is an int, too
        raise ValueError(f"num_hidden_layers must be a whole number of at least 1, got {count!r}")
    if types is None:
        if count is None:
            raise ValueError("layer_types: missing from the configuration, and so is num_hidden_layers")
        types = five_to_one(count)
    if not isinstance(types, (list, tuple)):
        raise ValueError(f"layer_types: expected a list, got {types!r}")
    if count is not None and len(types) != count:
        raise ValueError(f"layer_types: expected {count} entries (num_hidden_layers), got {len(types)}")
    _check_layer_types(types)
    return tuple(types)


def _check_layer_types(types: Sequence[Any]) -> None:
    # transformers turns a last layer of the other type into a full one, with no more than a warning.
    if not types or any(kind not in (SLIDING, FULL) for kind in types) or types[-1] != FULL:
        raise ValueError(f"layer_types must hold {SLIDING} and {FULL}, and end with the latter, got {tuple(types)}")


def _full_layer_sizes(text: Mapping[str, Any], layer_types: tuple[str, ...]) -> dict[str, Any]:
    """Head sizes of full layers from `per_layer_config`; {} without it.

    It maps layers (their numbers, as strings, or types) to the fields that differ there; we have one set for all full layers.
    """
    per_layer = text.get("per_layer_config")
    if per_layer is None:
        return {}
    if not isinstance(per_layer, Mapping):
        raise ValueError(f"per_layer_config: expected an object, got {per_layer!r}")
    overrides = {i: {} for i in range(len(layer_types))}
    for key, override in per_layer.items():
        of_key = [i for i, kind in enumerate(layer_types) if key == kind or str(key).isdecimal() and int(key) == i]
        if not of_key or not isinstance(override, Mapping):
            raise ValueError(f"per_layer_config: expected objects for layers 0..{len(layer_types) - 1}, got {key!r}")
        for layer in of_key:
            overrides[layer] |= override
    sizes = {kind: [overrides[i] for i, k in enumerate(layer_types) if k == kind] for kind in set(layer_types)}
    common = sizes[FULL][0]
    if any(sizes.get(SLIDING, ())) or any(other != common for other in sizes[FULL]):
        raise ValueError("per_layer_config: expected the same fields in all full layers and none in sliding ones")
    if set(common) - {"head_dim", "num_key_value_heads"}:
        raise ValueError(f"per_layer_config: expected head_dim and num_key_value_heads alone, got {sorted(common)}")
    kv_heads = common.get("num_key_value_heads")
    if kv_heads not in (None, text.get("num_key_value_heads")) and not text.get("attention_k_eq_v"):
        raise ValueError("per_layer_config: num_key_value_heads may differ in full layers only with attention_k_eq_v")
    head_dim = common.get("head_dim", text.get("head_dim", 256))
    return {"global_head_dim": head_dim, "num_global_key_value_heads": kv_heads}


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
