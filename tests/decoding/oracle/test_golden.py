"""Dumps: reproducible, described in full, complete or absent; and read back with checks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import drafter
import gemma4
from decoding.cli import main
from decoding.oracle import golden
from decoding.oracle.cases import CASES, GAMMA, LENGTHS, TEXTS
from decoding.oracle.engine import OracleError
from decoding.oracle.tiny import WINDOW
from decoding.oracle.write_texts import texts
from tests.decoding.oracle.conftest import CASE, STAGES

ROOT = Path(__file__).parents[3]
CLUSTERED = ("E2B", "E4B")


@pytest.fixture
def copy(dump_dir, tmp_path) -> Path:
    return Path(shutil.copytree(dump_dir, tmp_path / "dump"))


def files(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


# -- what is written ---------------------------------------------------------------------------------------------------


def test_two_dumps_are_byte_equal(dump_dir, tmp_path):
    golden.dump(tmp_path / "again", [CASE], STAGES)
    one, other = files(dump_dir), files(tmp_path / "again")
    assert one.keys() == other.keys()
    assert not [name for name in one if one[name] != other[name]]


def test_the_manifest_describes_every_tensor(dump_dir):
    dump = golden.read_dump(dump_dir)
    tensors = dump.expected(CASE)
    assert list(dump.entries) and dump.entries.keys() == tensors.keys()
    for name, entry in dump.entries.items():
        assert (entry.shape, entry.dtype) == (tensors[name].shape, tensors[name].dtype.name), name
        assert entry.tolerance.reason in dump.manifest["reasons"]
        assert entry.stage in dump.manifest["stages"]
    assert {entry.stage for entry in dump.entries.values()} == set(STAGES)
    assert dump.manifest["cases"][CASE]["seed"] == CASES[CASE].seed
    assert len(dump.manifest["versions"]["source_sha256"]) == 64


def test_the_tensors_come_from_the_checkpoints(dump_dir):
    target, draft = gemma4.load(dump_dir / CASE / "target"), drafter.load(dump_dir / CASE / "drafter")
    given, expected = load_file(dump_dir / CASE / golden.INPUTS), load_file(dump_dir / CASE / golden.EXPECTED)
    logits = np.asarray(gemma4.forward(target, given[f"{CASE}/forward/tokens"]).logits)
    np.testing.assert_allclose(logits, expected[f"{CASE}/forward/logits"], rtol=0, atol=1e-4 * np.abs(logits).max())
    assert draft.config.convention == CASES[CASE].convention


def test_a_dump_overwrites_nothing(copy):
    before = files(copy)
    with pytest.raises(OracleError, match="exists and is not empty"):
        golden.dump(copy, [CASE], ["rope"])
    assert files(copy) == before


def test_a_dump_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(golden, "record", fail)
    with pytest.raises(RuntimeError):
        golden.dump(tmp_path / "dump", [CASE], ["rope"])
    assert not list(tmp_path.iterdir())


def test_a_case_or_stage_named_twice_is_written_once(dump_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "keep_compiled_code", lambda: None)
    twice = [*("--case", CASE, "--stage", "emit") * 2]
    assert main.main(["oracle", "dump", "--out", str(tmp_path / "dump"), *twice]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'dump'}: {CASE}\n"
    assert list(golden.read_dump(tmp_path / "dump").entries) == [f"{CASE}/emit/num_emitted", f"{CASE}/emit/done"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_dump_that_is_interrupted_leaves_nothing(tmp_path, number):
    command = [sys.executable, "-m", "gemma4", "oracle", "dump", "--out", str(tmp_path / "dump")]
    # A child inherits ignored signals (nohup).
    with_default = lambda: signal.signal(number, signal.SIG_DFL)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path.parent)}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, preexec_fn=with_default)
    until = time.monotonic() + 300
    while not list(tmp_path.glob(".dump.*/*")) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()), "the dump never began"
    child.send_signal(number)
    assert child.wait(60) == 128 + number
    assert not list(tmp_path.iterdir())


# -- what is read ------------------------------------------------------------------------------------------------------


def damage_nothing_there(directory: Path):
    shutil.rmtree(directory)


def damage_no_manifest(directory: Path):
    (directory / golden.MANIFEST).unlink()


def damage_not_json(directory: Path):
    (directory / golden.MANIFEST).write_text("{")


def damage_deep_json(directory: Path):
    (directory / golden.MANIFEST).write_text("[" * 100_000)


def damage_another_version(directory: Path):
    manifest = json.loads((directory / golden.MANIFEST).read_text())
    (directory / golden.MANIFEST).write_text(json.dumps(manifest | {"format_version": 99}))


def damage_missing_file(directory: Path):
    (directory / CASE / golden.EXPECTED).unlink()


def damage_cut_short(directory: Path):
    file = directory / CASE / golden.EXPECTED
    file.write_bytes(file.read_bytes()[:-1])


def damaged_field(name, value):
    def damage(directory: Path):
        manifest = json.loads((directory / golden.MANIFEST).read_text())
        manifest[name] = value(manifest.get(name)) if callable(value) else value
        (directory / golden.MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if v is not ...}))

    damage.__name__ = f"damaged_{name}"
    return damage


def first_entry(change: dict):
    return damaged_field("tensors", lambda tensors: [tensors[0] | change, *tensors[1:]])


def renamed(name: str):
    return first_entry({"name": name})


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_nothing_there, "no such directory"),
        (damage_no_manifest, "not a dump"),
        (damage_not_json, "not the manifest of a dump"),
        (damage_deep_json, "not the manifest of a dump"),
        (first_entry({"shape": ["4"]}), "not the manifest of a dump"),
        (first_entry({"dtype": 4}), "not the manifest of a dump"),
        (first_entry({"required": "yes"}), "not the manifest of a dump"),
        (first_entry({"rule": "none"}), "not the manifest of a dump"),
        (first_entry({"rule": "relative", "tolerance": 0}), "not the manifest of a dump"),
        (first_entry({"tolerance": 1e999}), "not the manifest of a dump"),
        (damage_another_version, "expected format .* version 1"),
        (damaged_field("sha256", [1]), "not the manifest of a dump"),
        (damaged_field("sha256", None), "not the manifest of a dump"),
        (damaged_field("cases", ...), "not the manifest of a dump"),
        (damaged_field("cases", {"7B": {}}), "not the manifest of a dump"),
        (renamed("logits"), "not the manifest of a dump"),
        (renamed(f"{CASE}/nonsense/logits"), "not the manifest of a dump"),
        (renamed(7), "not the manifest of a dump"),
        (damage_missing_file, f"{golden.EXPECTED}: missing from the dump"),
        (damage_cut_short, f"{golden.EXPECTED}: changed since the dump"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_dump_is_refused(copy, damage, message):
    golden.read_dump(copy)
    damage(copy)
    with pytest.raises(OracleError, match=message):
        golden.read_dump(copy)


@pytest.mark.parametrize("change", [{"name": f"{CASE}/forward/none"}, {"shape": [1]}], ids=["name", "shape"])
def test_a_manifest_that_lists_an_absent_tensor_is_refused(copy, change):
    damaged_field("tensors", lambda tensors: [tensors[0] | change, *tensors[1:]])(copy)
    with pytest.raises(OracleError, match=r"expected.safetensors: .* is not in it, though the manifest lists it"):
        golden.read_dump(copy).expected(CASE)


# -- the cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts_are_those_of_the_targets():
    """texts.json is the output of `python -m decoding.oracle.write_texts`."""
    assert json.loads(TEXTS.read_text()) == texts()


@pytest.mark.parametrize("name", CASES)
def test_inputs_meet_the_conditions_that_show_mistakes(name):
    case, given = CASES[name], CASES[name].inputs()
    assert LENGTHS == (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3)
    kept = given["rollback/kept"]
    assert set(kept.reshape(-1).tolist()) == set(range(1, GAMMA + 2))
    assert all(len(set(counts.tolist())) > 1 for counts in kept), "rows of a round keep different numbers of tokens"
    assert (np.array(LENGTHS) + kept.sum(axis=0)).max() > 3 * WINDOW
    keys = given["draft/sliding_attention.key"]
    past = np.arange(keys.shape[2]) >= given["draft/lengths"][:, None]
    assert (keys.swapaxes(1, 2)[past] > 10).all() and past.any(axis=1).all()
    eos, (text, _) = given["rounds/eos"][0], json.loads(TEXTS.read_text())[case.layout]
    assert 6 <= text.index(eos) < len(text) - 1
    if case.layout in CLUSTERED:
        ordering = np.asarray(case.draft_model().masked_embedding.token_ordering[...])
        assert (ordering[ordering] != np.arange(len(ordering))).any()


def test_cases_cover_layouts_and_conventions():
    pairs = {(case.layout, case.convention) for case in CASES.values()}
    assert pairs == {(layout, c) for layout in gemma4.PRESETS for c in drafter.config.CONVENTIONS}
