"""Loading and exporting need little more memory than the model has: one tensor, and a block or a few tensors of the file."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import gemma4
from gemma4 import Config
from gemma4.config import FULL, SLIDING
from tests.models import random_target

# Measured from outside of pytest, whose process has more than this model has.  Writing 5 to clear_refs makes the present size
# the largest one so far.
LOAD = """
import sys, jax, gemma4
from pathlib import Path

def megabytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

gemma4.load(sys.argv[2], sys.argv[3])  # a small one, so that all code is imported
Path("/proc/self/clear_refs").write_text("5")
before = megabytes("VmRSS")
model = jax.block_until_ready(gemma4.load(sys.argv[1], sys.argv[3]))
sizes = [leaf.nbytes / 1e6 for leaf in jax.tree.leaves(model)]
print(megabytes("VmHWM") - before - sum(sizes), max(sizes), sum(sizes))
Path("/proc/self/clear_refs").write_text("5")
before = megabytes("VmRSS")
gemma4.export_hf(model, sys.argv[4], "bfloat16")
print(megabytes("VmHWM") - before)
"""


def config(vocab_size: int) -> Config:
    return Config(
        vocab_size=vocab_size,
        vocab_size_per_layer_input=vocab_size,
        hidden_size=256,
        intermediate_size=2048,
        layer_types=(*[SLIDING] * 11, FULL),
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        global_head_dim=128,
        hidden_size_per_layer_input=8,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its largest size")
@pytest.mark.parametrize("loaded", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "orbax"])
def test_no_more_than_one_tensor_and_a_block_beside_the_model(tmp_path, stored, loaded):
    """A file of 200 MB in float32, or half of that; exported as bfloat16 after it is loaded."""
    for name, vocab_size in (("large", 90_000), ("small", 64)):
        target = random_target(config(vocab_size))
        if stored == "orbax":
            gemma4.save(target, tmp_path / name)
        else:
            gemma4.export_hf(target, tmp_path / name, jnp.dtype(stored))
    directories = [str(tmp_path / name) for name in ("large", "small")]
    command = [sys.executable, "-c", LOAD, *directories, loaded, str(tmp_path / "exported")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    above, largest, total, of_export = map(float, printed.split())
    assert total > (190 if loaded == "float32" else 95)
    # Blocks have up to 34 MB; Orbax reads 67 MB at a time and holds them twice.
    assert above < largest + (150 if stored == "orbax" else 60), printed
    assert of_export < 93 + 40, printed  # the largest tensor in float32
