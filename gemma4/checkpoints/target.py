"""Checkpoints of a target: Hugging Face safetensors in and out, Orbax in and out; google-deepmind/gemma's in.

A checkpoint is a directory with `config.json` and either safetensors files or a folder `params` that Orbax wrote.  A
`generation_config.json` beside them may name more tokens that end a text (instruction-tuned models have three).  A checkpoint
of google-deepmind/gemma is itself the folder that Orbax wrote; `deepmind.py` reads it.

This file knows the names of a target's tensors; `safetensors.py` and `orbax.py` read and write them.
"""

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from gemma4.checkpoints import deepmind, orbax, safetensors
from gemma4.checkpoints.directories import (
    CheckpointError,
    check_checksums,
    check_file,
    new_directory,
    parsed,
    read_config,
    write_checksums,
    write_config,
)
from gemma4.checkpoints.hf_config import read_target, target_json, with_end_tokens
from gemma4.checkpoints.params import LoadReport, check_fits, check_model, float_dtype, named_params, shape_only
from gemma4.checkpoints.safetensors import StoredTensor
from gemma4.config import Config
from gemma4.model import Gemma4

# Multimodal files call the decoder model.language_model (or language_model.model), text-only ones model, or nothing.
PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)")
OTHER = ("vision_tower", "audio_tower", "embed_vision", "vision_embedder", "embed_audio", "multi_modal_projector")
HEAD, TABLE = "lm_head.weight", "embed_tokens.weight"  # in a file that has both, they are equal
KV_WEIGHT = re.compile(r"layers\.(\d+)\.self_attn\.[kv]_(proj|norm)\.weight")
log = logging.getLogger(__name__)


def load(directory: str | os.PathLike, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Gemma4:
    """A target from a Hugging Face directory, from one that `save` wrote, or from a checkpoint of google-deepmind/gemma.

    dtype:  of all parameters: float32, bfloat16 or float16, whatever the file has.
    mesh:   put each tensor onto the devices of this mesh as it is read, split as `gemma4/sharding.py` says; None puts all onto
            one device.
    Errors: CheckpointError for files that are absent, damaged or of another architecture, and for tensors that are
            missing, unexpected or of another shape than config.json, or the released size, asks for (all of them in one
            message), and for a number that float16 does not reach; ValueError unless the mesh has one axis, "model".
    """
    return load_with_report(directory, dtype, mesh)[0]


def load_with_report(
    directory: str | os.PathLike, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[Gemma4, LoadReport]:
    """`load`, and what became of each tensor in the files."""
    directory = Path(directory)
    if orbax.is_orbax(directory):
        target, report = deepmind.load(directory, dtype, mesh, functools.partial(_with_end_tokens, directory=directory))
    else:
        target, report = _load(directory, dtype, mesh)
    for reason, names in (("KV-shared layers", report.unused_kv), ("other parts of the model", report.other)):
        if names:
            log.info("%s: %d tensors of %s left out, e.g. %s", directory, len(names), reason, names[0])
    return target, report


def _load(directory: Path, dtype: Any, mesh: Mesh | None) -> tuple[Gemma4, LoadReport]:
    config = _with_end_tokens(read_config(directory, read_target), directory)
    check_checksums(directory)
    blank = shape_only(Gemma4, config, dtype)
    check_fits(blank, directory, mesh)
    if (directory / orbax.FOLDER).is_dir():
        return orbax.load_orbax(blank, directory / orbax.FOLDER, mesh), LoadReport(tuple(named_params(blank)))
    tensors, report = _text_tensors(safetensors.read_tensors(directory), config)
    if (head := tensors.pop(HEAD, None)) is not None:
        safetensors.check_tied(head, tensors.get(TABLE))
    return safetensors.load_weights(blank, tensors, directory, mesh, rename=hf_name), report


def _with_end_tokens(config: Config, directory: Path) -> Config:
    """`config` with the end tokens of the directory's generation_config.json, if there is one."""
    file = directory / "generation_config.json"
    if not os.path.lexists(file):
        return config
    check_file(file, "")
    return parsed(file, functools.partial(with_end_tokens, config))


def save(target: Gemma4, directory: str | os.PathLike) -> None:
    """Write config.json and, with Orbax, the parameters as they are; also the checksums of all files.

    Errors: CheckpointError for another model than a Gemma4, and unless the directory is empty or new.
    """
    check_model(target, Gemma4, "gemma4.save")
    with new_directory(directory) as scratch:
        write_saved(target, scratch)


def write_saved(target: Gemma4, directory: Path) -> None:
    """What `save` writes, beside what is in the directory."""
    write_config(directory, target_json(target.config))
    orbax.save_orbax(target, directory / orbax.FOLDER)
    write_checksums(directory)


def export_hf(target: Gemma4, directory: str | os.PathLike, dtype: Any = None) -> None:
    """Write config.json and model.safetensors, which transformers reads as `Gemma4ForCausalLM`.

    dtype:  float32, bfloat16 or float16; None keeps that of the parameters.
    Errors: CheckpointError for another model than a Gemma4, unless the directory is empty or new, and for a number that
            float16 does not reach.
    """
    check_model(target, Gemma4, "gemma4.export_hf")
    with new_directory(directory) as scratch:
        write_exported(target, scratch, dtype)


def write_exported(target: Gemma4, directory: Path, dtype: Any = None) -> None:
    """What `export_hf` writes, beside what is in the directory."""
    dtype = float_dtype(target.embed_tokens.weight.dtype if dtype is None else dtype)
    write_config(directory, {**target_json(target.config), "dtype": dtype.name})
    weights = directory / safetensors.WEIGHTS
    safetensors.write_safetensors(target, weights, dtype, rename=lambda name: f"model.{hf_name(name)}")


def hf_name(name: str) -> str:
    """The name in a Hugging Face file, without prefix.  There, per-layer embeddings have no prefix of their own."""
    return name.removeprefix("per_layer_embeddings.")


def _text_tensors(tensors: dict[str, StoredTensor], config: Config) -> tuple[dict[str, StoredTensor], LoadReport]:
    """The text decoder's tensors, and the head if there is one, by name without prefix; the report names the others."""
    kept, unused_kv, other = {}, [], []
    for key, tensor in tensors.items():
        name = PREFIX.sub("", key)
        kv_weight = KV_WEIGHT.fullmatch(name)
        if name.split(".")[0] in OTHER or safetensors.is_rope_buffer(name):
            other.append(key)
        elif kv_weight and config.first_kv_shared_layer <= int(kv_weight[1]) < config.num_hidden_layers:
            unused_kv.append(key)
        elif name in kept:
            raise CheckpointError(f"{tensor.file}: {key} and {kept[name].key} are both {name}; remove one")
        else:
            kept[name] = tensor
    loaded = tuple(tensor.key for name, tensor in kept.items() if name != HEAD)
    other += [tensor.key for name, tensor in kept.items() if name == HEAD]
    return kept, LoadReport(loaded, tuple(unused_kv), tuple(other))
