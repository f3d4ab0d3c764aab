"""Checkpoints of a drafter: Hugging Face safetensors in and out, Orbax in and out.

A checkpoint is a directory with `config.json` and either safetensors files or a folder `params` that Orbax wrote.
This file knows the names of a drafter's tensors; `gemma4/checkpoints` reads and writes them.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drafter.hf_config import drafter_json, read_drafter
from drafter.model import Drafter
from gemma4.checkpoints import orbax, safetensors
from gemma4.checkpoints.directories import (
    CheckpointError,
    check_checksums,
    new_directory,
    read_config,
    write_checksums,
    write_config,
)
from gemma4.checkpoints.params import check_fits, check_model, float_dtype, shape_only

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"  # in a file that has both, they are equal
OUTSIDE = ("pre_projection", "post_projection", "masked_embedding")  # without the prefix `model.` in a file
# transformers' `generate` reads these beside an assistant: how many tokens to draft, and that the number is constant.
GENERATION_CONFIG = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant", "is_assistant": True}


def load(
    directory: str | os.PathLike,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    *,
    convention: str | None = None,
) -> Drafter:
    """A drafter from a Hugging Face directory, or from one that `save` wrote.

    dtype:      of all floating parameters: float32, bfloat16 or float16, whatever the file has.
    mesh:       as `gemma4.load` has it.
    convention: of `Config`, in place of the file's; Hugging Face files name none, and then it is "transformers".
    Errors:     CheckpointError for files that are absent, damaged or of another architecture, for tensors that are missing,
                unexpected or of another shape than config.json asks for, for a number that float16 does not reach, and for a
                `token_ordering` that is no permutation; ValueError unless the mesh has one axis, "model", and for an unknown
                convention.
    """
    directory = Path(directory)
    config = read_config(directory, read_drafter)
    check_checksums(directory)
    config = config if convention is None else dataclasses.replace(config, convention=convention)
    blank = shape_only(Drafter, config, dtype)
    check_fits(blank, directory, mesh)
    if (directory / orbax.FOLDER).is_dir():
        draft_model = orbax.load_orbax(blank, directory / orbax.FOLDER, mesh)
    else:
        found = safetensors.read_tensors(directory)
        tensors = {name: tensor for name, tensor in found.items() if not safetensors.is_rope_buffer(name)}
        if (head := tensors.pop(HEAD, None)) is not None:
            safetensors.check_tied(head, tensors.get(TABLE))
        draft_model = safetensors.load_weights(blank, tensors, directory, mesh, rename=hf_name)
    if config.use_ordered_embeddings:
        _check_ordering(np.asarray(draft_model.masked_embedding.token_ordering[...]), directory)
    return draft_model


def save(draft_model: Drafter, directory: str | os.PathLike) -> None:
    """Write config.json and, with Orbax, the parameters as they are; also the checksums of all files.

    Errors: CheckpointError for another model than a Drafter, and unless the directory is empty or new.
    """
    check_model(draft_model, Drafter, "drafter.save")
    with new_directory(directory) as scratch:
        write_saved(draft_model, scratch)


def write_saved(draft_model: Drafter, directory: Path) -> None:
    """What `save` writes, into an empty directory."""
    write_config(directory, drafter_json(draft_model.config))
    orbax.save_orbax(draft_model, directory / orbax.FOLDER)
    write_checksums(directory)


def export_hf(draft_model: Drafter, directory: str | os.PathLike, dtype: Any = None) -> None:
    """Write what transformers reads as `Gemma4AssistantForCausalLM`: both configurations and model.safetensors.

    dtype:  float32, bfloat16 or float16; None keeps that of the parameters.
    Errors: CheckpointError for another model than a Drafter, unless the directory is empty or new, and for a number that
            float16 does not reach.
    """
    check_model(draft_model, Drafter, "drafter.export_hf")
    with new_directory(directory) as scratch:
        write_exported(draft_model, scratch, dtype)


def write_exported(draft_model: Drafter, directory: Path, dtype: Any = None) -> None:
    """What `export_hf` writes, into an empty directory."""
    dtype = float_dtype(draft_model.embed_tokens.weight.dtype if dtype is None else dtype)
    write_config(directory, {**drafter_json(draft_model.config), "dtype": dtype.name})
    write_config(directory, GENERATION_CONFIG, "generation_config.json")
    safetensors.write_safetensors(draft_model, directory / safetensors.WEIGHTS, dtype, rename=hf_name)


def hf_name(name: str) -> str:
    """The name in a Hugging Face file."""
    return name if name.split(".")[0] in OUTSIDE else f"model.{name}"


def _check_ordering(ordering: np.ndarray, source: Path) -> None:
    """Errors: CheckpointError unless each token is in exactly one cluster; otherwise some could never be drafted."""
    counts = np.bincount(ordering[(ordering >= 0) & (ordering < ordering.size)], minlength=ordering.size)
    if (wrong := np.flatnonzero(counts != 1)).size:
        raise CheckpointError(
            f"{source}: masked_embedding.token_ordering must hold every id of 0..{ordering.size - 1} once, but "
            f"{wrong.size} ids are absent or repeated (id {wrong[0]}: {counts[wrong[0]]} times); fetch the file again"
        )
