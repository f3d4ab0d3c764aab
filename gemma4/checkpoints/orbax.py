"""Parameters in a folder that Orbax writes, as they are here.

Orbax is imported when it is needed: that takes longer than reading a small model.
"""

import contextlib
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

FOLDER = "params"  # under the checkpoint's directory


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
    expected = named_params(blank)
    shardings = shardings_on(expected, mesh, SingleDeviceSharding(jax.devices()[0]))
    check_tensors(shapes(expected), shapes(orbax_tensors(path)), path)
    return with_params(blank, read_orbax(path, expected, shardings))


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
    path: Path, wanted: Mapping[str, Leaf], shardings: Mapping[str, Sharding | None] | None = None
) -> dict[str, Any]:
    """The tensors that `wanted` names as `orbax_tensors` does, in its dtypes; no others are read.

    shardings: the sharding of each jax.Array; None leaves all on the host, as NumPy arrays.
    Errors:    CheckpointError if the folder is damaged, and for a number that the wanted dtype does not reach.
    """
    tensors = _restored(path, wanted, shardings)
    narrow = [name for name, leaf in wanted.items() if leaf.dtype == jnp.float16]
    if infinite := [name for name in narrow if np.isinf(np.asarray(tensors[name])).any()]:
        # Orbax casts without a word.  Read as stored what is infinite now, to see whether it was infinite in the file.
        stored = _restored(path, {name: leaf for name, leaf in orbax_tensors(path).items() if name in infinite})
        for name, array in stored.items():
            to_floats(array, wanted[name].dtype, f"{path}: {name}")
    return tensors


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
