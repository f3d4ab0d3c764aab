"""A target, its drafter and its tokenizer, read and written together: the pair that ships with the package, or any other."""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from tokenizers import Tokenizer

import drafter
import drafter.checkpoint
import gemma4
from drafter import Drafter
from gemma4 import CheckpointError, Gemma4
from gemma4.checkpoints import target as target_checkpoint
from gemma4.checkpoints.directories import check_file, kind_of, new_directory
from gemma4.checkpoints.hub import local_directory
from gemma4.checkpoints.params import check_model

SHIPPED = Path(__file__).parent / "shipped_pair" / "king_james"
TOKENIZER = "tokenizer.json"
# What else may lie beside a target's weights: recommended sampling settings, and what transformers wants of a tokenizer.
BESIDE = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Encoded once when a tokenizer is loaded, because some faults of its file show only then.  The last characters are in hardly
# any vocabulary.
TRIAL = "Hello, world: 12\n\té 東京 🙂 \U0010fffd"
log = logging.getLogger(__name__)

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

    A name on the Hugging Face hub may stand for a directory (`gemma4/checkpoints/hub.py`).

    dtype:  of all floating parameters, whatever the files have.
    mesh:   split both models over the devices of this mesh, as `gemma4.load` does; None puts all onto one.
    convention: of the drafter's position and window, "transformers" or "vllm" (`drafter.Config`); the file's unless given.
    Errors: ValueError if only one directory is given, if the two models do not fit each other, unless the mesh has one axis,
            "model", and for an unknown convention; CheckpointError for files that are absent, damaged or of another
            architecture, and for a tokenizer of another target.
    """
    if (target_dir is None) != (drafter_dir is None):
        given = "target" if drafter_dir is None else "drafter"
        raise ValueError(f"only a {given} directory was given: give target and drafter, or none for the shipped pair")
    target, tokenizer = load_target(target_dir, dtype, mesh)
    drafter_dir = SHIPPED / "drafter" if drafter_dir is None else local_directory(drafter_dir)
    draft_model = drafter.load(drafter_dir, dtype, mesh, convention=convention)
    draft_model.config.check_fits(target.config)
    return Pair(target, draft_model, tokenizer)


def load_target(
    directory: Directory | None = None, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[Gemma4, Tokenizer | None]:
    """The target half of a pair; a warning of the log names a directory without tokenizer.json.  Errors: as `load_pair`."""
    if directory is None and not SHIPPED.is_dir():
        raise CheckpointError(
            f"{SHIPPED}: the shipped pair is missing; install gemma4-mtp again, or name the directories of another pair"
        )
    directory = SHIPPED / "target" if directory is None else local_directory(directory)
    target = gemma4.load(directory, dtype, mesh)
    return target, _read_tokenizer(directory / TOKENIZER, target.config)


def _read_tokenizer(file: Path, config: gemma4.Config) -> Tokenizer | None:
    if not os.path.lexists(file):
        log.warning(
            "%s: no %s, so texts can be neither encoded nor decoded; prompts are token ids", file.parent, file.name
        )
        return None
    check_file(file, "")
    with _readable(file, "read it"):
        tokenizer = Tokenizer.from_file(str(file))
    _check_ids(tokenizer, file, config)
    tokenizer.no_truncation()  # a file may ask for either, and then prompts would be truncated or padded
    tokenizer.no_padding()
    with _readable(file, "encode a text with it"):
        encoded = [tokenizer.encode(TRIAL, add_special_tokens=special).ids for special in (True, False)]
    with _readable(file, "decode tokens with it"):
        tokenizer.decode_batch(encoded)
    return tokenizer


def _check_ids(tokenizer: Tokenizer, file: Path, config: gemma4.Config) -> None:
    """Tokens that were added to the vocabulary may lie past the target's embeddings; a prompt that has one is an error then.

    Errors: CheckpointError for others.
    """
    known = config.vocab_size
    outside = {token: i for token, i in tokenizer.get_vocab(with_added_tokens=True).items() if i >= known}
    if not outside:
        return
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if others := sorted(outside.keys() - added, key=outside.__getitem__):
        raise CheckpointError(
            f"{file}: has {len(others)} tokens that the target lacks, such as {others[0]!r:.40} (id {outside[others[0]]}): "
            f"expected ids below {known}; use the tokenizer made for this target"
        )
    first = min(outside, key=outside.__getitem__)
    log.warning(
        "%s: %d added tokens have no embedding in the target (%d rows), such as %.40r (id %d); do not use them in a prompt",
        *(file, len(outside), known, first, outside[first]),
    )


@contextlib.contextmanager
def _readable(file: Path, purpose: str) -> Iterator[None]:
    try:
        with _without_panic_messages():
            yield
    except BaseException as error:  # `tokenizers` raises Exception itself; a panic of its Rust code is a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interrupt
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file}: `tokenizers` cannot {purpose} ({reason:.200}); fetch the file again") from error


@contextlib.contextmanager
def _without_panic_messages() -> Iterator[None]:
    """Rust writes a panic's message and stack to file descriptor 2 itself, before Python sees the exception."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# -- writing -----------------------------------------------------------------------------------------------------------


def save_pair(pair: Pair, directory: Directory, *, source: Directory | None = None) -> None:
    """Write `directory`/target, with the tokenizer, and `directory`/drafter, as `gemma4.save` and `drafter.save` do.

    `load_pair` reads these two; both appear or neither.

    source: the directory that the target came from.  From there generation_config.json and what transformers wants of a
            tokenizer are copied; a Pair does not hold them.
    Errors: CheckpointError for models of another kind, unless the directory is empty or new, and for a source that is no
            directory.
    """
    _check_pair(pair, source, "decoding.save_pair")
    _write_pair(pair, directory, source, target_checkpoint.write_saved, drafter.checkpoint.write_saved)


def export_pair(pair: Pair, directory: Directory, dtype: Any = None, *, source: Directory | None = None) -> None:
    """`save_pair` in Hugging Face layout, as `gemma4.export_hf` and `drafter.export_hf` write it.

    dtype:  float32, bfloat16 or float16; None keeps that of the parameters.
    Errors: as `save_pair`, and CheckpointError for a number that float16 does not reach.
    """
    _check_pair(pair, source, "decoding.export_pair")
    write_target = functools.partial(target_checkpoint.write_exported, dtype=dtype)
    write_drafter = functools.partial(drafter.checkpoint.write_exported, dtype=dtype)
    _write_pair(pair, directory, source, write_target, write_drafter)


def _check_pair(pair: Pair, source: Directory | None, writer: str) -> None:
    check_model(pair.target, Gemma4, writer)
    check_model(pair.draft_model, Drafter, writer)
    if source is not None and not Path(source).is_dir():
        found = kind_of(Path(source)) if os.path.lexists(source) else "nothing"
        raise CheckpointError(
            f"{writer}: source: expected the directory that the target came from, got {source}, {found}"
        )


def _write_pair(
    pair: Pair,
    directory: Directory,
    source: Directory | None,
    write_target: Callable[[Gemma4, Path], None],
    write_drafter: Callable[[Drafter, Path], None],
) -> None:
    with new_directory(directory) as scratch:
        for part in ("target", "drafter"):
            (scratch / part).mkdir()
        # The tokenizer before the weights: `write_target` takes the checksums of all files that are there.
        if pair.tokenizer is not None:
            (scratch / "target" / TOKENIZER).write_text(pair.tokenizer.to_str(pretty=True), encoding="utf-8")
        for file in () if source is None else map(Path(source).joinpath, BESIDE):
            if os.path.lexists(file):
                check_file(file, "")
                shutil.copyfile(file, scratch / "target" / file.name)
        write_target(pair.target, scratch / "target")
        write_drafter(pair.draft_model, scratch / "drafter")
