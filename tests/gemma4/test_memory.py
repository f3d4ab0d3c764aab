"""What cannot fit is refused before it is made, in one line that says how much it takes."""

import re

import jax
import jax.numpy as jnp
import pytest

import decoding
import drafter
import gemma4
from gemma4 import memory
from gemma4.memory import NotEnoughMemory, check_memory, free_memory
from tests.models import small_drafter, small_target

ARRAYS = [jax.ShapeDtypeStruct((1000, 50), jnp.bfloat16), jax.ShapeDtypeStruct((100,), jnp.float32)]  # 100,400 bytes


def test_as_much_as_is_free_fits(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 100_400)
    check_memory("x", ARRAYS, "")
    monkeypatch.setattr(memory, "free_memory", lambda: 100_399)
    with pytest.raises(NotEnoughMemory, match=r"x: takes 0.0001 GB of memory, and 0.0001 GB are free; do something"):
        check_memory("x", ARRAYS, "do something")
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    check_memory("x", ARRAYS, "")


def test_free_memory_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:       24632056 kB\nMemAvailable:   1000 kB\n")
    assert free_memory() == 1_024_000


def test_a_load_and_a_cache_that_cannot_fit(tmp_path, monkeypatch):
    gemma4.export_hf(small_target(), tmp_path / "target")
    drafter.export_hf(small_drafter(), tmp_path / "drafter")
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    for load, name in ((gemma4.load, "target"), (drafter.load, "drafter")):
        with pytest.raises(NotEnoughMemory, match=rf"{re.escape(str(tmp_path / name))}: takes .*; load it as bfloat16"):
            load(tmp_path / name)
    with pytest.raises(NotEnoughMemory, match="the KV cache of 2 rows of 256 tokens: takes .*; give fewer prompts"):
        decoding.prefill(small_target(), [[2, 9], [3]], max_new_tokens=4)
