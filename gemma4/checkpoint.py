"""Checkpoints of a target: Hugging Face safetensors in and out, Orbax in and out; google-deepmind/gemma's in.

A checkpoint is a directory with `config.json` and either safetensors files or a folder `params` that Orbax wrote; a
`generation_config.json` beside them may name more tokens that end a text (instruction-tuned models have three).  One of
google-deepmind/gemma is itself the folder that Orbax wrote: `config.json` is missing there, and its shapes tell which of the
released sizes it is.  For a model of another size, put its `config.json` (Hugging Face layout) into the folder.

This file knows the names of a target's tensors, `deepmind.py` those of the other package; `storage.py` reads and writes them.
"""

import functools
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemma4 import deepmind, storage
from gemma4.config import PRESETS, Config
from gemma4.config_json import with_end_tokens
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


def load(directory: str | os.PathLike, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Gemma4:
    """A target from a Hugging Face directory, from one that `save` wrote, or from a checkpoint of google-deepmind/gemma.

    dtype:  of all parameters: float32, bfloat16 or float16, whatever the file has.
    mesh:   put each tensor onto the devices of this mesh as it is read, split as `sharding.py` says; None puts all onto one.
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
    read = _load_deepmind if storage.is_orbax(directory) else _load
    target, report = read(directory, dtype, mesh)
    for reason, names in (("KV-shared layers", report.unused_kv), ("other parts of the model", report.other)):
        if names:
            log.info("%s: %d tensors of %s left out, e.g. %s", directory, len(names), reason, names[0])
    return target, report


def _load(directory: Path, dtype: Any, mesh: Mesh | None) -> tuple[Gemma4, LoadReport]:
    config = _with_end_tokens(storage.read_config(directory, Config.from_hf), directory)
    blank = storage.abstract(Gemma4, config, dtype)
    if (directory / storage.ORBAX).is_dir():
        return storage.load_orbax(blank, directory / storage.ORBAX, mesh), LoadReport(tuple(named_params(blank)))
    tensors, report = _text_tensors(storage.read_tensors(directory), config)
    return storage.fill(blank, tensors, directory, mesh, rename=hf_name), report


def _with_end_tokens(config: Config, directory: Path) -> Config:
    """What `config_json.with_end_tokens` makes of the directory's generation_config.json, if there is one."""
    file = directory / "generation_config.json"
    if not os.path.lexists(file):
        return config
    if not file.is_file():
        raise CheckpointError(
            f"{file}: expected a file, got a directory or a link to nothing; fetch it again, or remove it"
        )
    return storage.parsed(file, functools.partial(with_end_tokens, config))


def _load_deepmind(directory: Path, dtype: Any, mesh: Mesh | None) -> tuple[Gemma4, LoadReport]:
    tensors = storage.orbax_tensors(directory)
    config, asked_by = _deepmind_config(directory, tensors)
    config = _with_end_tokens(config, directory)
    blank = storage.abstract(Gemma4, config, dtype)
    tree = deepmind.tensors(config)
    keys, report = _deepmind_text(tensors, config)
    found = {name: tensors[key] for name, key in keys.items()}
    storage.check_tensors(storage.shapes(tree), storage.shapes(found), directory, asked_by)
    for key in report.loaded:
        if not jnp.issubdtype(tensors[key].dtype, jnp.floating):
            raise CheckpointError(
                f"{directory}: {key} is stored as {tensors[key].dtype}, expected floats; "
                "quantised checkpoints are not supported"
            )
    wanted = {key: tensors[key].update(dtype=storage.float_dtype(dtype)) for key in report.loaded}
    arrays, places = storage.read_orbax(directory, wanted), storage.placed_on(named_params(blank), mesh)
    params = {}
    for name, tensor in tree.items():
        parts = tensor.ours(arrays.pop(keys[name]))  # popped, so that no more than one tensor is there twice
        params |= {part: jax.device_put(array, places[part]) for part, array in parts.items()}
    return with_params(blank, params), report


def _deepmind_config(directory: Path, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Config, str]:
    """The configuration, and what `storage.check_tensors` should say of it."""
    if (directory / "config.json").is_file():
        return storage.read_config(directory, Config.from_hf), "config.json; are both of the same model?"
    sizes = {(config.vocab_size, config.hidden_size): name for name, config in PRESETS.items()}
    embedding = tensors[deepmind.EMBEDDING].shape if deepmind.EMBEDDING in tensors else None
    put = f"put its config.json (Hugging Face layout) into {directory}"
    if embedding in sizes:
        name = sizes[embedding]
        return PRESETS[name], f"{name}, whose embedding table has this size; if it is another model, {put}"
    expected = ", ".join(f"{list(shape)} ({name})" for shape, name in sizes.items())
    raise CheckpointError(
        f"{directory}: a tree of tensors without config.json, so that {deepmind.EMBEDDING} tells which model it is: expected "
        f"{expected}, got {'no such tensor' if embedding is None else list(embedding)}; if it is another model in the layout "
        f"of google-deepmind/gemma, {put}"
    )


def _deepmind_text(tensors: Mapping[str, jax.ShapeDtypeStruct], config: Config) -> tuple[dict[str, str], LoadReport]:
    """Which tensor is which of the text decoder's, and the report."""
    other = tuple(key for key in tensors if deepmind.is_other(key))
    unused_kv = tuple(key for key in tensors if deepmind.is_unused_kv(key, config))
    left_out = {*other, *unused_kv}
    keys = {deepmind.plain_name(key): key for key in tensors if key not in left_out}
    return keys, LoadReport(tuple(keys.values()), unused_kv, other)


def save(target: Gemma4, directory: str | os.PathLike) -> None:
    """Write config.json and, with Orbax, the parameters as they are.

    Errors: CheckpointError for another model than a Gemma4, and unless the directory is empty or new.
    """
    storage.check_model(target, Gemma4, "gemma4.save")
    with storage.new_directory(directory) as scratch:
        storage.write_config(scratch, target.config.to_hf())
        storage.save_orbax(target, scratch / storage.ORBAX)


def export_hf(target: Gemma4, directory: str | os.PathLike, dtype: Any = None) -> None:
    """Write config.json and model.safetensors, which transformers reads as `Gemma4ForCausalLM`.

    dtype:  float32, bfloat16 or float16; None keeps that of the parameters.
    Errors: CheckpointError for another model than a Gemma4, unless the directory is empty or new, and for a number that
            float16 does not reach.
    """
    storage.check_model(target, Gemma4, "gemma4.export_hf")
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
