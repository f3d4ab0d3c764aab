"""What the tests of checkpoints share: writers, comparison, and damage."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma4
from gemma4 import CheckpointError
from gemma4.checkpoints.params import named_params
from gemma4.checkpoints.safetensors import WEIGHTS

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
WRITERS = {"orbax": gemma4.save, "hf": gemma4.export_hf}
with_each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def rewrite(directory: Path, change: Callable[[dict], dict]) -> None:
    """Replace the tensors in `directory` by change(tensors)."""
    tensors = change(load_file(directory / WEIGHTS))
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, directory / WEIGHTS)


def assert_same(ours, expected, dtype=None) -> None:
    """Equal parameters, bit for bit; `expected` is rounded to `dtype` first if that is given."""
    ours, expected = named_params(ours), named_params(expected)
    assert list(ours) == list(expected)
    for name, leaf in expected.items():
        assert ours[name].dtype == (dtype or leaf.dtype), name
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(leaf).astype(ours[name].dtype), err_msg=name)


def assert_refused(directory: Path, *fragments: str, **arguments) -> str:
    """`gemma4.load` raises one CheckpointError whose message has all fragments.  Returns the message."""
    with pytest.raises(CheckpointError) as caught:
        gemma4.load(directory, **arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)
    return str(caught.value)
