"""`config.json`, in and out: the fields of `Config` under the names of Hugging Face files.

Options for which there is no formula here are refused.  A JSON file may hold anything, so each field is checked here, where
its name is known.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma4.config import FULL, SLIDING, Config, check_layer_types, five_to_one

TEXT_MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")

# Positions and sizes are int32, and a drafter's window is one larger than the field; the formulas are in float32.
LARGEST = 2**31 - 2
MAX_LAYERS = 1000  # more cannot be compiled
FLOAT32 = [float(bound) for bound in (np.finfo(np.float32).tiny, np.finfo(np.float32).max)]


def read_target(config: Mapping[str, Any]) -> Config:
    """A target's file, nested under `text_config` or plain.

    Full layers' sizes come from `global_head_dim` and `num_global_key_value_heads` or, in files that newer transformers write,
    from `per_layer_config`.  Errors: ValueError that names the field.
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
    # The released files name more end tokens outside text_config than inside; the outer ones apply if there are any.
    outside = config if config.get("eos_token_id") is not None else text
    ends = outside.get("eos_token_id", 1)
    read = read_text({**text, "eos_token_id": ends}, config)
    if None in read.kv_source:
        raise ValueError(
            f"num_kv_shared_layers: expected an owner of K/V before every layer of its type that shares them, got "
            f"{read.num_kv_shared_layers} of {read.num_hidden_layers} layers shared; only a drafter shares them all"
        )
    return read


def read_text(text: Mapping[str, Any], outer: Mapping[str, Any]) -> Config:
    """Fields of one `gemma4_text` mapping: a target's, or the one inside a drafter's file.

    outer: the whole file, which is `text` itself in a plain one.
    """
    _refuse_unsupported(text)
    _refuse_unsupported(outer)  # transformers reads tie_word_embeddings from the outer level
    fields = {}
    for field in dataclasses.fields(Config):
        value = text.get(field.name)
        if value is not None:
            fields[field.name] = value
        elif field.default is dataclasses.MISSING and field.name != "layer_types":
            raise ValueError(f"{field.name}: missing from the configuration; a gemma4_text config.json has it")
    fields["layer_types"] = _layer_types(text)
    fields["final_logit_softcapping"] = text.get("final_logit_softcapping")
    fields["bos_token_id"] = text.get("bos_token_id", 2)
    fields["eos_token_ids"] = _ids(text.get("eos_token_id", 1))
    fields |= _full_layer_sizes(text, fields["layer_types"])
    rope = _rope(text)
    fields["sliding_rope_theta"] = rope[SLIDING].get("rope_theta", 10_000.0)
    fields["full_rope_theta"] = rope[FULL].get("rope_theta", 1_000_000.0)
    # A file without the factor means the released value, not 1.0.  (mlx-lm #1114 took 1.0; so does transformers 5.22.2, with a
    # warning, if the file has the entry for full layers but not the factor.)
    fields["partial_rotary_factor"] = rope[FULL].get("partial_rotary_factor", 0.25)
    for field in dataclasses.fields(Config):
        check_kind(field, fields.get(field.name, field.default))
    return Config(**fields)


def with_end_tokens(config: Config, generation: Mapping[str, Any]) -> Config:
    """`config` with the end tokens of `generation_config.json`, if it names any; transformers' `generate` reads them there.

    An empty list means that no token ends a text, as in config.json.
    Errors: ValueError that names the field, also for an id outside the vocabulary (unless config.json has it, too, because
            transformers copies it).
    """
    if generation.get("eos_token_id") is None:
        return config
    ends = _ids(generation["eos_token_id"])
    check_kind(next(field for field in dataclasses.fields(Config) if field.name == "eos_token_ids"), ends)
    if not all(i < config.vocab_size or i in config.eos_token_ids for i in ends):
        raise ValueError(
            f"eos_token_id: expected ids of this model's vocabulary, 0..{config.vocab_size - 1}, got {ends}"
        )
    return dataclasses.replace(config, eos_token_ids=ends)


def _ids(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def target_json(config: Config) -> dict[str, Any]:
    """The plain file that transformers reads as `Gemma4ForCausalLM`."""
    ours = dataclasses.asdict(config)
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
        "layer_types": list(config.layer_types),
        "num_hidden_layers": config.num_hidden_layers,
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
    if field.type in (int | None, float | None) and value is None:
        return
    if field.type is bool and not isinstance(value, bool):
        raise ValueError(f"{field.name} must be true or false, got {value!r}")
    is_number, (least, most) = _is_whole(value) or isinstance(value, float), FLOAT32
    if field.type in (float, float | None) and not (is_number and least <= value <= most):
        raise ValueError(
            f"{field.name} must be a positive number that float32 holds, {least:.1e} to {most:.1e}, got {value!r:.80}"
        )
    if field.name in _TOKEN_IDS:
        ids = value if isinstance(value, tuple) else (value,)
        if not all(_is_whole(item) and 0 <= item < 2**31 for item in ids):
            raise ValueError(f"{field.name}: expected token ids in 0..{2**31 - 1}, got {value!r:.80}")
        return
    if field.type in (int, int | None):
        _check_count(field.name, value, least=0 if field.name in _MAY_BE_ZERO else 1)


def _check_count(name: str, value: Any, least: int = 1, most: int = LARGEST) -> None:
    if not (_is_whole(value) and least <= value <= most):
        raise ValueError(f"{name} must be a whole number in {least}..{most}, got {value!r:.80}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_unsupported(text: Mapping[str, Any]) -> None:
    for name in ("quantization_config", "quantization", "compression_config"):  # the second is MLX's name
        if text.get(name):
            method = text[name].get("quant_method", "") if isinstance(text[name], Mapping) else text[name]
            raise ValueError(
                f"{name}: expected none, got {str(method) or 'one'!s:.40}: quantised checkpoints are not supported; take the "
                "original in bfloat16"
            )
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
    """RoPE's settings by layer type.  Stretched variants (yarn, linear, ...) are refused: we have no formula for them.

    `rope_scaling` is the older name of `rope_parameters`; where a file has both, transformers 5.22.2 takes `rope_scaling`.  It
    then needs both layer types there; in `rope_parameters`, what is missing has the released value.
    """
    name = "rope_parameters" if text.get("rope_scaling") is None else "rope_scaling"
    rope = {} if text.get(name) is None else text[name]
    kinds = {SLIDING, FULL}
    if not isinstance(rope, Mapping) or set(rope) - kinds or name == "rope_scaling" and set(rope) != kinds:
        raise ValueError(f"{name}: expected an object with {SLIDING} and {FULL} alone, got {rope!r:.200}")
    by_type = {}
    for kind, expected in ((SLIDING, "default"), (FULL, "proportional")):
        by_type[kind] = rope.get(kind) or {}
        settings = by_type[kind]
        if not isinstance(settings, Mapping) or settings.get("rope_type", settings.get("type", expected)) != expected:
            raise ValueError(f"{name}: expected rope_type {expected!r} for {kind}, got {rope!r:.200}")
        if settings.get("factor", 1.0) != 1.0:
            raise ValueError(f"{name}: expected no factor for {kind}, got {rope!r:.200}")
    return by_type


def _layer_types(text: Mapping[str, Any]) -> tuple[str, ...]:
    types = text.get("layer_types")
    count = text.get("num_hidden_layers")
    if count is not None:
        _check_count("num_hidden_layers", count, most=MAX_LAYERS)
    if types is None:
        if count is None:
            raise ValueError("layer_types: missing from the configuration, and so is num_hidden_layers")
        types = five_to_one(count)
    if not isinstance(types, (list, tuple)):
        raise ValueError(f"layer_types: expected a list, got {types!r}")
    _check_count("layer_types: number of layers", len(types), most=MAX_LAYERS)
    if count is not None and len(types) != count:
        raise ValueError(f"layer_types: expected {count} entries (num_hidden_layers), got {len(types)}")
    check_layer_types(types)
    return tuple(types)


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
