"""What a model is made of, as a record of plain numbers, from its configuration alone."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from decoding.bench.subject import LAYOUTS
from decoding.bench.work import draft_work, forward_work
from decoding.load import SHIPPED
from drafter import Drafter
from drafter import config as drafter_config
from drafter.hf_config import read_drafter
from gemma4 import Config, Gemma4
from gemma4.checkpoints.directories import read_config
from gemma4.checkpoints.hf_config import read_target
from gemma4.checkpoints.params import named_params, shape_only
from gemma4.config import FULL, SLIDING

# Parameters as the model cards state them, which round, and for 12B count vision and audio, too.
MODEL_CARDS = {
    "E2B": "2.3 B effective (without the per-layer table)",
    "E4B": "4.5 B effective (without the per-layer table)",
    "12B": "11.95 B with vision and audio",
    "26B-A4B": "25.2 B, of which 3.8 B are active",
    "31B": "30.7 B",
}
CONTEXT = 8192  # at which the bytes of a step are counted, unless the model's own is shorter
# Where a parameter belongs, by a part of its name; the first one that fits counts.
PARTS = {
    "token embeddings, also the head": "embed_tokens.weight",
    "per-layer embedding table": "embed_tokens_per_layer",
    "experts": ".experts.",
    "attention": "self_attn.",
    "MLP": ".mlp.",
}
OTHER = "norms, routers, projections"


class Models(NamedTuple):
    """A pair by its shapes."""

    name: str
    target: Gemma4
    draft_model: Drafter | None


def models_of(subject: str | None, drafter_dir: str | None = None, dtype: str = "bfloat16") -> Models:
    """A released size by its name, a directory with a target's config.json, or (None) the shipped pair.

    drafter_dir: the directory of the target's drafter; a released size has its own.
    Errors:      ValueError for a name that is neither, and CheckpointError for a file that is no configuration.
    """
    names = {name.lower(): name for name in LAYOUTS}
    directory = SHIPPED / "target" if subject is None else Path(subject)
    if subject is not None and (name := names.get(subject.lower())):
        configs: tuple[Config, drafter_config.Config | None] = LAYOUTS[name]
    elif os.path.lexists(directory):
        name = "the shipped pair" if subject is None else str(directory)
        if subject is None and drafter_dir is None:
            drafter_dir = str(SHIPPED / "drafter")
        configs = read_config(directory, read_target), None
    else:
        raise ValueError(f"{subject}: expected {', '.join(LAYOUTS)} or a directory with config.json, got neither")
    config, draft_config = configs
    if drafter_dir is not None:
        draft_config = read_config(Path(drafter_dir), read_drafter)
    if draft_config is not None:
        draft_config.check_fits(config)
    target = shape_only(Gemma4, config, dtype)
    return Models(name, target, None if draft_config is None else shape_only(Drafter, draft_config, dtype))


def describe(models: Models) -> dict[str, Any]:
    """Everything that `gemma4-mtp inspect` shows.  Bytes are those of the models' dtype."""
    target, config = models.target, models.target.config
    params = named_params(target)
    itemsize = jnp.dtype(target.embed_tokens.weight.dtype).itemsize
    parts = Counter({part_of(name): 0 for name in params})
    for name, leaf in params.items():
        parts[part_of(name)] += leaf.size
    kv_bytes = {
        kind: sum(
            2 * config.kv_heads(layer) * config.layer_head_dim(layer) * itemsize
            for layer, source in enumerate(config.kv_source)
            if source == layer and config.layer_types[layer] == kind
        )
        for kind in (SLIDING, FULL)
    }
    context = min(CONTEXT, config.max_position_embeddings)
    step = forward_work(target, 1, 1, context - 1)
    found = {
        "name": models.name,
        "dtype": jnp.dtype(target.embed_tokens.weight.dtype).name,
        "layers": [layer_of(config, layer) for layer in range(config.num_hidden_layers)],
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "context": config.max_position_embeddings,
        "sliding_window": config.sliding_window,
        "experts": {"count": config.num_experts, "each_token": config.top_k_experts}
        if config.enable_moe_block
        else None,
        "donors": config.donors,
        "parameters": {"parts": dict(parts)} | totals(config, params),
        "model_card": MODEL_CARDS.get(models.name),
        "kv_bytes_per_token": kv_bytes,
        "step_at_context": context,
        "step_bytes": step.bytes,
        "step_flops": step.flops,
        "drafter": None,
    }
    if models.draft_model is not None:
        found["drafter"] = describe_drafter(target, models.draft_model, context)
    return found


def layer_of(config: Config, layer: int) -> dict[str, Any]:
    source = config.kv_source[layer]
    return {
        "layer": layer,
        "type": config.layer_types[layer].removesuffix("_attention"),
        "heads": config.num_attention_heads,
        "kv_heads": config.kv_heads(layer),
        "head_dim": config.layer_head_dim(layer),
        "owns_kv": source == layer,
        "kv_of": source,  # the layer that wrote what this one reads; a drafter's layers read the target's
        "k_eq_v": config.k_eq_v(layer),
        "is_donor": source == layer and config.donors[config.layer_types[layer]] == layer,
        "mlp_width": config.mlp_width(layer),
    }


def part_of(name: str) -> str:
    return next((part for part, mark in PARTS.items() if mark in name), OTHER)


def totals(config: Config, params: dict[str, Any]) -> dict[str, int]:
    """The counts that model cards give; a layer's scalar is a buffer in released files, and is counted by none of them.

    effective: without the per-layer table, of which a token reads one row.
    active:    the same with the experts that one token visits.
    """
    total = sum(leaf.size for leaf in params.values()) - config.num_hidden_layers
    table = sum(leaf.size for name, leaf in params.items() if "embed_tokens_per_layer" in name)
    experts = sum(leaf.size for name, leaf in params.items() if ".experts." in name)
    idle = experts * (config.num_experts - config.top_k_experts) // config.num_experts if experts else 0
    return {"total": total, "effective": total - table, "active": total - table - idle}


def describe_drafter(target: Gemma4, draft_model: Drafter, context: int) -> dict[str, Any]:
    config, params = draft_model.config, named_params(draft_model)
    head = {"kind": "dense", "scored": config.text.vocab_size}
    if config.use_ordered_embeddings:
        candidates = config.text.vocab_size // config.num_centroids * config.centroid_intermediate_top_k
        head = {"kind": "clustered", "scored": candidates, "clusters": config.num_centroids}
    step = draft_work(target, draft_model, 1, context)
    layers = [
        layer_of(config.text, layer) | {"kv_of": target.config.donors[kind], "owns_kv": False}
        for layer, kind in enumerate(config.text.layer_types)
    ]
    return {
        "hidden_size": config.text.hidden_size,
        "layers": layers,
        "head": head,
        "convention": config.convention,
        "parameters": sum(leaf.size for leaf in params.values() if jnp.issubdtype(leaf.dtype, jnp.floating)),
        "step_bytes": step.bytes,
        "step_flops": step.flops,
    }
