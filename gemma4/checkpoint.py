"""Checkpoints of a target: Hugging Face safetensors in and out, Orbax in and out.

A checkpoint is a directory with `config.json` and either safetensors files or a folder `params` that Orbax wrote.
This file knows the names of a target's tensors; `storage.py` reads and writes them.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from gemma4 import storage
from gemma4.config import Config
from gemma4.model import Gemma4
from gemma4.storage import CheckpointError, Stored, named_params, with_params

__all__ = [
    "CheckpointError",
    "LoadReport",
    "export_hf",
    "load",
    "load_with_report",
    "named_params",
    "save",
    "with_params",
]

# Multimodal files call the decoder model.language_model (or language_model.model), text-only ones model, or nothing.
PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)")
OTHER = ("lm_head", "vision_tower", "audio_tower", "embed_vision", "embed_audio", "multi_modal_projector")
KV_WEIGHT = re.compile(r"layers\.(\d+)\.self_attn\.[kv]_(proj|norm)\.weight")
log = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """What became of the tensors in a checkpoint, by their names in the file."""

    loaded: tuple[str, ...]
    unused_kv: tuple[str, ...] = ()  # K/V weights of layers that read another layer's K/V: released files have them
    other: tuple[str, ...] = ()  # vision, audio, and the LM head, which is the embedding table again


def load(directory: str | os.PathLike, dtype: Any = jnp.float32) -> Gemma4:
    """A target from a Hugging Face directory, or from one that `save` wrote.

    dtype:  of all parameters: float32, bfloat16 or float16, whatever the file has.
    Errors: CheckpointError for files that are absent, damaged or of another architecture, and for tensors that are
            missing, unexpected or of another shape than config.json asks for (all of them in one message).
    """
    return load_with_report(directory, dtype)[0]


def load_with_report(directory: str | os.PathLike, dtype: Any = jnp.float32) -> tuple[Gemma4, LoadReport]:
    """`load`, and what became of each tensor in the files."""
    directory = Path(directory)
    config = storage.read_config(directory, Config.from_hf)
    blank = storage.abstract(Gemma4, config, dtype)
    if (directory / storage.ORBAX).is_dir():
        return storage.load_orbax(blank, directory / storage.ORBAX), LoadReport(tuple(named_params(blank)))
    tensors, report = _text_tensors(storage.read_tensors(directory), config)
    for reason, names in (("KV-shared layers", report.unused_kv), ("other parts of the model", report.other)):
        if names:
            log.info("%s: %d tensors of %s left out, e.g. %s", directory, len(names), reason, names[0])
    return storage.fill(blank, tensors, directory, rename=hf_name), report


def save(target: Gemma4, directory: str | os.PathLike) -> None:
    """Write config.json and, with Orbax, the parameters as they are.

    Errors: CheckpointError unless the directory is empty or new.
    """
    with storage.new_directory(directory) as scratch:
        storage.write_config(scratch, target.config.to_hf())
        storage.save_orbax(target, scratch / storage.ORBAX)


def export_hf(target: Gemma4, directory: str | os.PathLike, dtype: Any = None) -> None:
    """Write config.json and model.safetensors, which transformers reads as `Gemma4ForCausalLM`.

    dtype:  float32, bfloat16 or float16; None keeps that of the parameters.
    Errors: CheckpointError unless the directory is empty or new.
    """
    dtype = storage.float_dtype(target.embed_tokens.weight.dtype if dtype is None else dtype)
    in_file = lambda name: f"model.{hf_name(name)}"
    with storage.new_directory(directory) as scratch:
        storage.write_config(scratch, {**target.config.to_hf(), "dtype": dtype.name})
        storage.write_safetensors(target, scratch / storage.WEIGHTS, dtype, rename=in_file)


def hf_name(name: str) -> str:
    """The name in a Hugging Face file, without prefix: there the per-layer tables stand beside the layers."""
    return name.removeprefix("per_layer_inputs.")


def _text_tensors(tensors: dict[str, Stored], config: Config) -> tuple[dict[str, Stored], LoadReport]:
    """The text decoder's tensors by name without prefix; the report says which others the file holds."""
    kept, unused_kv, other = {}, [], []
    for key, tensor in tensors.items():
        name = PREFIX.sub("", key)
        kv_weight = KV_WEIGHT.fullmatch(name)
        if name.split(".")[0] in OTHER:
            other.append(key)
        elif kv_weight and config.first_kv_shared_layer <= int(kv_weight[1]) < config.num_hidden_layers:
            unused_kv.append(key)
        elif name in kept:
            raise CheckpointError(f"{tensor.file}: {key} and {kept[name].key} are both {name}; remove one")
        else:
            kept[name] = tensor
    return kept, LoadReport(tuple(tensor.key for tensor in kept.values()), tuple(unused_kv), tuple(other))
