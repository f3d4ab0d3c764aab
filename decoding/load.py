"""A target, its drafter and its tokenizer, read together: the pair that ships with the package, or any other."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from tokenizers import Tokenizer

import drafter
import gemma4
from drafter import Drafter
from gemma4 import CheckpointError, Gemma4

SHIPPED = Path(__file__).parent / "shipped_pair" / "king_james"
TOKENIZER = "tokenizer.json"

Directory = str | os.PathLike


class Pair(NamedTuple):
    target: Gemma4
    draft_model: Drafter
    tokenizer: Tokenizer | None  # None where the target's directory has no tokenizer.json


def load_pair(
    target_dir: Directory | None = None,
    drafter_dir: Directory | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    *,
    convention: str | None = None,
) -> Pair:
    """The pair in two checkpoint directories; without arguments the shipped one, trained on the King James Bible.

    dtype:  of all floating parameters, whatever the files have.
    mesh:   split both models over the devices of this mesh, as `gemma4.load` does; None puts all onto one.
    convention: of the drafter's position and window, "transformers" or "vllm" (`drafter.Config`); the file's unless given.
    Errors: ValueError if only one directory is given, if the two models do not fit each other, unless the mesh has one axis,
            "model", and for an unknown convention; CheckpointError for files that are absent, damaged or of another
            architecture, and for a tokenizer with ids that the target lacks.
    """
    if (target_dir is None) != (drafter_dir is None):
        given = "target" if drafter_dir is None else "drafter"
        raise ValueError(f"only a {given} directory was given: give target and drafter, or none for the shipped pair")
    target, tokenizer = load_target(target_dir, dtype, mesh)
    drafter_dir = SHIPPED / "drafter" if drafter_dir is None else drafter_dir
    draft_model = drafter.load(drafter_dir, dtype, mesh, convention=convention)
    draft_model.config.check_fits(target.config)
    return Pair(target, draft_model, tokenizer)


def load_target(
    directory: Directory | None = None, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[Gemma4, Tokenizer | None]:
    """The target half of a pair.  Errors: as `load_pair`."""
    if directory is None and not SHIPPED.is_dir():
        raise CheckpointError(
            f"{SHIPPED}: the shipped pair is missing; install gemma4-mtp again, or name the directories of another pair"
        )
    directory = SHIPPED / "target" if directory is None else Path(directory)
    target = gemma4.load(directory, dtype, mesh)
    return target, _read_tokenizer(directory / TOKENIZER, target.config)


def _read_tokenizer(file: Path, config: gemma4.Config) -> Tokenizer | None:
    if not file.exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file}: `tokenizers` cannot read it ({error}); fetch the file again") from error
    if (size := tokenizer.get_vocab_size()) > config.vocab_size:
        raise CheckpointError(
            f"{file}: has {size} tokens, but the target {config.vocab_size}; use the tokenizer made for this target"
        )
    tokenizer.no_truncation()  # a file may ask for either, and then prompts would be truncated or padded
    tokenizer.no_padding()
    return tokenizer
