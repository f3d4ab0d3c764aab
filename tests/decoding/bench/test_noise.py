"""Warnings that a measurement is disturbed."""

import pytest

from decoding.bench import cli
from decoding.bench.noise import busy, varied
from decoding.bench.report import lines
from decoding.cli.main import main


@pytest.mark.parametrize(
    ("load", "cores", "warns"), [(None, 2, False), (0.6, 2, False), (0.7, 2, True), (0.7, 8, False)]
)
def test_the_load_average(load, cores, warns):
    warning = busy(load, cores)
    assert bool(warning) == warns
    assert not warns or f"load average {load} on {cores} cores" in warning


def test_quartiles_anywhere_in_the_record():
    steady = {"batches": [{"loops": [{"speed_up_quartiles": [2.0, 2.4]}, {"loop": "x"}]}]}
    assert varied(steady) is None and varied({"heads": {}}) is None
    noisy = {**steady, "autoregressive": {"ratio_quartiles": [1.0, 1.5]}}
    assert "differ by up to 50%" in varied(noisy)


@pytest.mark.parametrize("how", [[], ["--quiet"]])
def test_the_command_warns_before_and_after(how, monkeypatch, capsys):
    """Before, on standard error, unless --quiet; after, at the end of what it prints."""
    monkeypatch.setattr(cli, "load_average", lambda: 99.0)
    record = {"gain": 1.0, "dense over x": 1.0, "x_quartiles": [1.0, 3.0], "rows whose best token was scored": 1.0}
    monkeypatch.setattr(cli, "time_heads", lambda runs: dict(record))
    assert main(["bench", "--heads", *how]) == 0
    out, err = capsys.readouterr()
    assert ("load average 99.0" in err) == (not how)
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "load average 99.0" in notes[0] and "differ by up to 200%" in notes[1]


def test_no_note_without_a_reason():
    found = {"heads": {"rows whose best token was scored": 1.0}, "notes": []}
    assert not [line for line in lines(found) if "note" in line]
