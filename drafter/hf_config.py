"""A drafter's `config.json`, in and out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from drafter.config import Config
from gemma4.checkpoints.hf_config import check_kind, read_text, target_json

MODEL_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")


def read_drafter(config: Mapping[str, Any]) -> Config:
    """From the `config.json` of an assistant.  Errors: ValueError that names the field."""
    if config.get("model_type") not in MODEL_TYPES:
        raise ValueError(
            f"model_type: expected one of {', '.join(MODEL_TYPES)}, got {config.get('model_type')!r}; "
            "this is not the configuration of a Gemma 4 drafter"
        )
    for name in ("text_config", "backbone_hidden_size"):
        if not config.get(name):
            raise ValueError(f"{name}: missing from the configuration; a drafter's config.json has it")
    if not isinstance(config["text_config"], Mapping):
        raise ValueError(f"text_config: expected an object, got {config['text_config']!r}")
    own = {field.name: field for field in dataclasses.fields(Config) if field.name != "text"}
    given = {name: config[name] for name in own if config.get(name) is not None}
    for name, value in given.items():
        check_kind(own[name], value)
    return Config(text=read_text(config["text_config"], config), **given)


def drafter_json(config: Config) -> dict[str, Any]:
    """The `config.json` that transformers reads as `Gemma4AssistantForCausalLM` (it ignores `convention`)."""
    ours = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    text = {name: value for name, value in target_json(ours.pop("text")).items() if name != "architectures"}
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "tie_word_embeddings": True,
        **ours,
        "text_config": text,
    }
