"""Parameters in a folder that Orbax writes, as they are here.

Orbax is imported when it is needed: that takes longer than reading a small model.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from gemma4.checkpoints.directories import CheckpointError, check_file
from gemma4.checkpoints.params import (
    Leaf,
    Module,
    check_tensors,
    named_params,
    shapes,
    shardings_on,
    to_floats,
    with_params,
)
from gemma4.progress import progress

FOLDER = "params"  # under the checkpoint's directory
GROUP = 2**26  # bytes in the folder, read at once


def save_orbax(module: nnx.Module, path: Path) -> None:
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), named_params(module))
    except ValueError as error:  # Orbax wraps the system's error in pages of text
        raise OSError(f"{path}: {str(error).splitlines()[0]:.200}") from error


def load_orbax(blank: Module, path: Path, mesh: Mesh | None = None) -> Module:
    """The module that `blank` describes, from what `save_orbax` wrote, in the dtypes of `blank`.

    Mesh and errors: as `safetensors.load_weights`.
    """
    expected, found = named_params(blank), orbax_tensors(path)
    shardings = shardings_on(expected, mesh, SingleDeviceSharding(jax.devices()[0]))
    check_tensors(shapes(expected), shapes(found), path)
    return with_params(blank, dict(read_orbax(path, expected, found, shardings)))


def is_orbax(directory: Path) -> bool:
    """Whether this is itself the folder that Orbax wrote."""
    return (directory / "_METADATA").is_file()


def orbax_tensors(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """What Orbax wrote there, by path in the tree, joined by slashes.  Reads no tensors.

    Errors: CheckpointError if the folder is damaged.
    """
    import orbax.checkpoint as ocp

    for file in path.rglob("*"):
        if not file.is_dir():
            check_file(file, "")  # Orbax would wait for a FIFO forever
    with _readable(path), ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(path.absolute()).item_metadata
        if found is None:
            raise ValueError("its metadata lists no tensors")
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in jax.tree_util.tree_leaves_with_path(found.tree)
        }


def read_orbax(
    path: Path,
    wanted: Mapping[str, Leaf],
    found: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Sharding | None] | None = None,
) -> Iterator[tuple[str, Any]]:
    """The tensors that `wanted` names as `orbax_tensors` does, in its dtypes, each with its name; no others are read.

    A few at a time, of GROUP bytes together, because Orbax holds much of what it reads twice.

    found:     what `orbax_tensors` says.
    shardings: the sharding of each jax.Array; None leaves all on the host, as NumPy arrays.
    Errors:    CheckpointError if the folder is damaged, and for a number that the wanted dtype does not reach.
    """
    sizes = {name: math.prod(found[name].shape) * found[name].dtype.itemsize for name in wanted}
    with progress(f"reading {path.parent.name}", sum(sizes.values()), "bytes") as advance:
        for names in _groups(sizes):
            group = {name: wanted[name] for name in names}
            tensors = jax.block_until_ready(_restored(path, group, shardings))
            _check_finite(path, group, tensors, found)
            advance(sum(map(sizes.__getitem__, names)))
            yield from ((name, tensors.pop(name)) for name in names)


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in their order, so many at a time that their sizes sum up to GROUP at most; or one that is larger."""
    names: list[str] = []
    for name, size in sizes.items():
        if names and sum(map(sizes.__getitem__, names)) + size > GROUP:
            yield names
            names = []
        names = [*names, name]
    if names:
        yield names


def _check_finite(
    path: Path, wanted: Mapping[str, Leaf], tensors: Mapping[str, Any], found: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
    """Errors: CheckpointError for a number that float16 does not reach."""
    narrow = [name for name, leaf in wanted.items() if leaf.dtype == jnp.float16]
    if infinite := [name for name in narrow if np.isinf(np.asarray(tensors[name])).any()]:
        # Orbax casts without a word.  Read as stored what is infinite now, to see whether it was infinite in the file.
        stored = _restored(path, {name: found[name] for name in infinite})
        for name, array in stored.items():
            to_floats(array, wanted[name].dtype, f"{path}: {name}")


def _restored(
    path: Path, wanted: Mapping[str, Leaf], shardings: Mapping[str, Sharding | None] | None = None
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    if shardings is None:
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype) for name, leaf in wanted.items()}
    else:
        how = {name: ocp.ArrayRestoreArgs(dtype=leaf.dtype, sharding=shardings[name]) for name, leaf in wanted.items()}
    wanted, how = (unflatten_dict(tree, sep="/") for tree in (wanted, how))
    arguments = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
    with _readable(path), ocp.PyTreeCheckpointer() as checkpointer:
        return flatten_dict(checkpointer.restore(path.absolute(), args=arguments), sep="/")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}: Orbax cannot read it, damaged or not written whole ({reason:.200}); copy it again, or save it again"
        ) from error
