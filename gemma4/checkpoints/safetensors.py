"""Tensors in safetensors files, in and out.

Linear weights are [out, in] there and [in, out] here; everything else is stored alike.

`safetensors` checks a file when it opens it.  The numbers are read here, block by block: through the memory map of
`safetensors` a process would come to hold the whole file beside the model.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from gemma4.checkpoints.directories import CheckpointError, check_file, is_inside, read_json
from gemma4.checkpoints.orbax import FOLDER
from gemma4.checkpoints.params import (
    Leaf,
    Module,
    check_tensors,
    linear_weights,
    named_params,
    shapes,
    shardings_on,
    to_floats,
    with_params,
)
from gemma4.progress import progress

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Names that end so hold scales and packed weights: FP8 and compressed-tensors, GPTQ and AWQ, MLX, bitsandbytes, cached K/V.
QUANTISED = (
    *(
        ".weight_scale",
        ".weight_scale_inv",
        ".input_scale",
        ".weight_packed",
        ".qweight",
        ".qzeros",
        ".scales",
        ".biases",
    ),
    *(".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".SCB", ".k_scale", ".v_scale"),
)
# Dtypes by their safetensors names.
FLOATS = {"F64": np.float64, "F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16}
INTEGERS = {"I64": np.int64, "I32": np.int32}
BLOCK = 2**23  # numbers read at once


class StoredTensor(NamedTuple):
    """One tensor in a safetensors file, not yet read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # by its safetensors name
    start: int  # of its bytes in the file

    def blocks(self) -> Iterator[np.ndarray]:
        """All numbers in their order, [up to BLOCK] at a time.  For the dtypes in FLOATS and INTEGERS."""
        dtype, total = np.dtype((FLOATS | INTEGERS)[self.dtype]), math.prod(self.shape)
        with open(self.file, "rb") as stream:
            stream.seek(self.start)
            for begin in range(0, total, BLOCK):
                block = np.fromfile(stream, dtype, expected := min(BLOCK, total - begin))
                if block.size < expected:
                    raise CheckpointError(
                        f"{self.file}: became shorter while it was read; load it again when it is whole"
                    )
                yield block

    def read(self, dtype: np.dtype) -> np.ndarray:
        """In another dtype.  Errors: CheckpointError for a number that it does not reach."""
        convert = to_floats if jnp.issubdtype(dtype, jnp.floating) else to_integers
        numbers, end = np.empty(math.prod(self.shape), dtype), 0
        for block in self.blocks():
            begin, end = end, end + block.size
            numbers[begin:end] = convert(block, dtype, f"{self.file}: {self.key}")
        return numbers.reshape(self.shape)


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors in a directory's safetensors file, or in the shards that its index names.  Reads headers only.

    Errors: CheckpointError that names the file which is missing or damaged, or the tensor that a shard lacks.
    """
    if os.path.lexists(directory / WEIGHTS):
        return _open(directory / WEIGHTS)
    if not os.path.lexists(directory / INDEX):
        found = ", ".join(sorted(path.name for path in directory.iterdir())) or "nothing"
        raise CheckpointError(
            f"{directory}: no weights; expected {WEIGHTS}, {INDEX} with shards, or {FOLDER}/ (Orbax), found {found}"
        )
    check_file(directory / INDEX, "")
    placed = read_json(directory / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise CheckpointError(f"{directory / INDEX}: weight_map must map tensors to shards; fetch the file again")
    if outside := [shard for shard in placed.values() if not is_inside(shard)]:
        raise CheckpointError(
            f"{directory / INDEX}: expected files of this directory, got {outside[0]!r:.80}; fetch the file again"
        )
    shards = {shard: _open(directory / shard) for shard in sorted(set(placed.values()))}
    for key, shard in placed.items():
        if key not in shards[shard]:
            raise CheckpointError(f"{directory / shard}: lacks {key}, which {INDEX} places there; fetch both again")
    return {key: shards[shard][key] for key, shard in placed.items()}


def is_rope_buffer(name: str) -> bool:
    """Whether a tensor holds RoPE's frequencies, which some writers store; they follow from config.json."""
    return re.search(r"(^|\.)rotary_emb\.\w*inv_freq$", name) is not None


def _open(file: Path) -> dict[str, StoredTensor]:
    check_file(file, f"{INDEX} names it; fetch this shard")
    try:
        with safe_open(file, "numpy"):  # checks the header, and that the file ends where its last tensor does
            pass
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error!s:.200}); fetch it again (a few bytes only: a Git LFS pointer)"
        ) from error
    return {
        key: StoredTensor(file, key, tuple(entry["shape"]), entry["dtype"], 8 + length + entry["data_offsets"][0])
        for key, entry in header.items()
        if key != "__metadata__"
    }


def _check_not_quantised(tensors: Mapping[str, StoredTensor]) -> None:
    """Errors: CheckpointError for tensors that only quantised checkpoints have: scales, zero points, packed weights."""
    for key, tensor in tensors.items():
        if key.endswith(QUANTISED) or tensor.dtype.startswith(("F8", "U", "I8", "F4")):
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} ({tensor.dtype}) is of a quantised checkpoint; these are not supported, take the "
                "original in bfloat16"
            )


def check_tied(head: StoredTensor, table: StoredTensor | None) -> None:
    """Errors: CheckpointError unless the vocabulary head is the embedding table again, to the number."""
    if table is None:
        return  # the missing table is reported with all that is missing
    is_equal = head.shape == table.shape and {head.dtype, table.dtype} <= FLOATS.keys()
    if not is_equal or not all(
        np.array_equal(ours.astype(np.float32), theirs.astype(np.float32), equal_nan=True)
        for ours, theirs in zip(head.blocks(), table.blocks(), strict=True)
    ):
        raise CheckpointError(
            f"{head.file}: {head.key} {list(head.shape)} differs from {table.key} {list(table.shape)}: expected the embedding "
            "table again (a tied head), as in every released Gemma 4; a checkpoint with a head of its own is not supported"
        )


def load_weights(
    blank: Module,
    tensors: Mapping[str, StoredTensor],
    source: Path,
    mesh: Mesh | None = None,
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> Module:
    """The module that `blank` (see `shape_only`) describes, read from `tensors` one at a time.

    mesh:   put each tensor onto these devices as it is read, split as `gemma4/sharding.py` says; None puts all onto one.
    rename: from a parameter's name to its name in `tensors`.  Floats are converted to the dtype of `blank`.
    Errors: CheckpointError that lists every tensor missing, unexpected, misshapen, or of a kind that it cannot convert; one
            for a number that the dtype does not reach; ValueError for a mesh of other axes.
    """
    params, transposed = named_params(blank), linear_weights(blank)
    shardings = shardings_on(params, mesh)
    expected = {rename(name): leaf.shape[::-1] if name in transposed else leaf.shape for name, leaf in params.items()}
    _check_not_quantised(tensors)
    check_tensors(expected, shapes(tensors), source)
    for name, leaf in params.items():
        tensor = tensors[rename(name)]
        kinds = FLOATS if jnp.issubdtype(leaf.dtype, jnp.floating) else INTEGERS
        if tensor.dtype not in kinds:
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} is stored as {tensor.dtype}, expected one of {', '.join(kinds)}; "
                "quantised checkpoints are not supported"
            )

    def read(name: str, leaf: Leaf) -> jax.Array:
        array = tensors[rename(name)].read(leaf.dtype)
        array = array.T if name in transposed else array
        # From the host, each device gets its own part and no other.  Waiting keeps all but one tensor off the host.
        return jax.block_until_ready(jax.device_put(array, shardings[name]))

    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in params.values())
    read_params = {}
    with progress(f"reading {source.name}", total, "bytes") as advance:
        for name, leaf in params.items():
            read_params[name] = read(name, leaf)
            advance(read_params[name].nbytes)
    return with_params(blank, read_params)


def to_integers(array: np.ndarray, dtype: np.dtype, source: str) -> np.ndarray:
    """The same numbers in another dtype.  Errors: CheckpointError for one that would wrap."""
    cast = array.astype(dtype, copy=False)
    if (wrong := array[array != cast]).size:
        raise CheckpointError(f"{source} holds {wrong[0]}, expected numbers that fit {dtype}; fetch the file again")
    return cast


def write_safetensors(
    module: nnx.Module, file: Path, dtype: np.dtype | None = None, *, rename: Callable[[str], str] = lambda name: name
) -> None:
    """All parameters of a module in one safetensors file, linear weights [out, in]; floats as `dtype` if given.

    They are written one at a time: `safetensors.numpy.save_file` would need a second copy of the whole model in memory.
    The format: the header's length in 8 bytes, the header in JSON, then each tensor's numbers, all little-endian.
    Source: https://huggingface.co/docs/safetensors, "Format".
    Errors: CheckpointError for a number that the dtype does not reach.
    """
    params, transposed = named_params(module), linear_weights(module)

    def stored_dtype(leaf: jax.Array) -> np.dtype:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.dtype(np.int64)  # as torch has them
        return np.dtype(leaf.dtype if dtype is None else dtype)

    names = {np.dtype(kind): name for name, kind in (FLOATS | INTEGERS).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants the format named
    end = 0
    for name, leaf in params.items():
        kind, begin = stored_dtype(leaf), end
        end += leaf.size * kind.itemsize
        shape = leaf.shape[::-1] if name in transposed else leaf.shape
        header[rename(name)] = {"dtype": names[kind], "shape": shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the numbers are aligned
    with progress(f"writing {file.name}", end, "bytes") as advance, open(file, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, leaf in params.items():
            array = np.asarray(leaf).T if name in transposed else np.asarray(leaf)
            kind = stored_dtype(leaf)
            array = to_floats(array, kind, name) if jnp.issubdtype(kind, jnp.floating) else array.astype(kind)
            array = np.ascontiguousarray(array)
            stream.write(array.reshape(-1).view(np.uint8).data)  # bytes, because Python's buffers know no bfloat16
            advance(array.nbytes)
