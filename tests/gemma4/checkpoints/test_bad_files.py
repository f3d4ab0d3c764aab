"""What may stand in a checkpoint's directory in place of the right files: one clear line each, and nothing outside is read."""

import errno
import json
import os
import re
import stat
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma4
from gemma4.checkpoints import directories, safetensors
from gemma4.checkpoints.directories import CheckpointError, new_directory
from tests.models import TINY, random_target


@pytest.fixture
def checkpoint(tmp_path):
    gemma4.export_hf(random_target(TINY["31B"]), tmp_path / "target")
    return tmp_path / "target"


def fails(directory, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        gemma4.load(directory)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_no_file(checkpoint, name):
    file = checkpoint / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    fails(checkpoint, f"{name}: expected a file, got a FIFO")
    file.unlink()
    file.mkdir()
    fails(checkpoint, f"{name}: expected a file, got a directory")
    file.rmdir()
    file.symlink_to("nowhere")
    fails(checkpoint, f"{name}: expected a file, got a link to nothing")


def test_a_file_in_place_of_the_directory(checkpoint):
    fails(checkpoint / "config.json", "config.json: expected a directory, got a file")


def test_a_config_in_another_encoding(checkpoint):
    file = checkpoint / "config.json"
    text = file.read_text(encoding="utf-8")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark, as some editors write it
    gemma4.load(checkpoint)
    file.write_bytes(text.encode("utf-16"))
    fails(checkpoint, "config.json: not valid JSON")


def test_a_config_that_is_no_config(checkpoint, monkeypatch):
    monkeypatch.setattr(directories, "MAX_JSON_BYTES", 10_000)
    (checkpoint / "config.json").write_text(json.dumps({"text": "x" * 20_000}))
    fails(checkpoint, "config.json: expected at most 10,000 bytes of JSON, got 20,0")


@pytest.mark.parametrize("layers", [1001, 20_000, 10**9])
def test_more_layers_than_any_model_has(checkpoint, layers):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    del config["layer_types"]
    file.write_text(json.dumps(config | {"num_hidden_layers": layers}))
    fails(checkpoint, rf"num_hidden_layers must be a whole number in 1\.\.1000, got {layers}")


@pytest.mark.parametrize("name", ["../secret.safetensors", "sub/../../secret.safetensors", "/secret.safetensors"])
def test_an_index_that_leaves_its_directory(checkpoint, name):
    os.link(checkpoint / "model.safetensors", checkpoint.parent / "secret.safetensors")
    keys = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(keys, name)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(checkpoint, f"expected files of this directory, got '{re.escape(name)}'")


def test_a_shard_that_is_a_link_into_a_cache(checkpoint):
    """The hub's cache keeps files elsewhere and links to them."""
    keys = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "blob")
    (checkpoint / "shard.safetensors").symlink_to("../blob")
    index = {"weight_map": dict.fromkeys(keys, "shard.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    gemma4.load(checkpoint)


# -- quantised checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value, method",
    [
        ("quantization_config", {"quant_method": "fp8"}, "fp8"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ("quantization", {"group_size": 64, "bits": 4}, "one"),
    ],
)
def test_a_quantised_checkpoint_says_so_in_its_config(checkpoint, field, value, method):
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    fails(checkpoint, f"{field}: expected none, got {method}: quantised checkpoints are not supported")


@pytest.mark.parametrize(
    "added",
    [
        {"model.layers.0.mlp.up_proj.weight_scale_inv": np.ones((1, 1), np.float32)},
        {"model.layers.0.mlp.up_proj.scales": np.ones((1, 1), np.float32)},
        {"model.layers.0.self_attn.k_proj.k_scale": np.ones(1, np.float32)},
        {"model.layers.0.mlp.up_proj.weight": np.ones((40, 3), np.uint32)},
        {"model.layers.0.mlp.up_proj.weight": np.asarray(jnp.ones((40, 24), jnp.float8_e4m3fn))},
    ],
    ids=["FP8 scales", "MLX", "K/V scales", "packed", "FP8"],
)
def test_a_quantised_checkpoint_is_told_by_its_tensors(checkpoint, added):
    file = checkpoint / "model.safetensors"
    save_file(load_file(file) | added, file, metadata={"format": "pt"})
    fails(checkpoint, r"(quantised checkpoint; these|quantised checkpoints) are not supported|these are not supported")


# -- saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        gemma4.export_hf(random_target(TINY["31B"]), tmp_path / "target")
    finally:
        os.umask(before)
    for file in (tmp_path / "target").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors.np, "ascontiguousarray", full)
    with pytest.raises(CheckpointError, match="target: cannot be written .*No space left on device.*make room there"):
        gemma4.export_hf(random_target(TINY["31B"]), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_two_savers_gets_one_line(tmp_path):
    with (
        pytest.raises(CheckpointError, match="another process wrote it meanwhile"),
        new_directory(tmp_path / "a") as mine,
    ):
        (mine / "file").touch()
        with new_directory(tmp_path / "a") as theirs:
            (theirs / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


KILLED = """
import os, signal, sys
from gemma4.checkpoints.directories import new_directory
with new_directory(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_saver_left_is_removed_by_the_next(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.")
    with new_directory(tmp_path / "b"):
        assert left.exists()  # another directory's
    with new_directory(tmp_path / "a"):
        assert not left.exists()
        with new_directory(tmp_path / "a"):  # this process is alive: its own stays
            assert len([path for path in tmp_path.iterdir() if path.name.startswith(".a.")]) == 2
            (tmp_path / "a").mkdir(exist_ok=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
