"""tutorials/reference/oracle_format.md is complete and correct: the page alone is enough to read a dump."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from decoding.oracle import golden
from decoding.oracle.cases import CASES, GAMMA, MAX_NEW_TOKENS
from decoding.oracle.record import OF_THE_CONVENTION, STAGES, record
from decoding.oracle.tiny import TINY, WINDOW
from tests.decoding.oracle.conftest import CASE

PAGE = (Path(__file__).parents[3] / "tutorials" / "reference" / "oracle_format.md").read_text(encoding="utf-8")
KINDS = {"F32": "<f4", "I32": "<i4"}


def read_by_hand(file: Path) -> dict[str, np.ndarray]:
    """A safetensors file, read as the page describes the format."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, item in header.items():
        begin, end = item["data_offsets"]
        out[name] = np.frombuffer(data[8 + size + begin : 8 + size + end], KINDS[item["dtype"]]).reshape(item["shape"])
    return out


@pytest.mark.parametrize("file", [golden.INPUTS, golden.EXPECTED])
def test_files_are_as_described(dump_dir, file):
    ours, theirs = read_by_hand(dump_dir / CASE / file), load_file(dump_dir / CASE / file)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


def test_every_stage_and_every_field_is_described(dump_dir):
    manifest = golden.read_dump(dump_dir).manifest
    tensor_fields = {field for item in manifest["tensors"] for field in item}
    for name in (*STAGES, *tensor_fields, *{item["rule"] for item in manifest["tensors"]}):
        assert f"`{name}`" in PAGE, name
    for name in set(manifest) - {"format", "format_version", "reasons"}:
        assert f"`{name}`" in PAGE, name
    assert (
        f"γ = {GAMMA} drafts" in PAGE and f"at most {MAX_NEW_TOKENS} new tokens" in PAGE and f"window {WINDOW}," in PAGE
    )


@pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])
def test_every_tap_is_described(layout):
    names = {re.sub(r"layers\.\d+", "layers.I", name.split("/")[1]) for name in record(CASES[layout], ["forward"])}
    for name in names:
        assert f"`{name}`" in PAGE or f"`.{name.split('.')[-1]}`" in PAGE, name


def test_inputs_that_the_page_names_exist():
    given = CASES["E2B"].inputs()
    for name in ("forward/tokens", "forward/lengths", "rope/positions"):
        assert name in given and f"`{name}`" in PAGE
    for stage, names in {
        "draft": ("token", "hidden", "lengths"),
        "verify": ("token", "drafts"),
        "accept": ("target_probs", "draft_probs", "drafts", "uniforms", "greedy_drafts", "logits"),
        "emit": ("tokens", "num_tokens", "room"),
        "rollback": ("blocks", "kept"),
        "rounds": ("prompts", "lengths", "script", "eos"),
    }.items():
        assert {f"{stage}/{name}" for name in names} <= given.keys()
        assert all(f"`{name}`" in PAGE for name in names)


def test_cases_are_described():
    assert all(f"`{layout}`" in PAGE for layout in TINY) and "`E2B.vllm`" in PAGE
    assert set(OF_THE_CONVENTION) <= set(STAGES)
