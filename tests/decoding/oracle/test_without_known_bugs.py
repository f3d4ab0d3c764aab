"""Without the folder of known bugs, which quotes the reference's lines, only the two commands that need it are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WITHHELD = ("known_bugs", "king_james", "__pycache__")  # and the shipped weights, which nothing here reads

SCRIPT = """
import argparse, sys

import decoding.oracle.cli as oracle
from decoding.oracle.engine import OracleError

parser = argparse.ArgumentParser()
oracle.add_command(parser.add_subparsers(), argparse.HelpFormatter)
try:
    code = oracle.run(parser.parse_args(sys.argv[1:]))
except OracleError as error:
    code = str(error)
assert "decoding.oracle.known_bugs" not in sys.modules
sys.exit(code)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The packages without the folder."""
    directory = tmp_path_factory.mktemp("without_known_bugs")
    for package in ("gemma4", "drafter", "decoding"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns(*WITHHELD))
    assert (directory / "decoding" / "oracle").is_dir() and not list(directory.rglob("known_bugs"))
    return directory


@pytest.fixture
def oracle(copy):
    def oracle(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", SCRIPT, "oracle", *arguments]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)

    return oracle


def test_dump_and_check_need_no_known_bugs(oracle, tmp_path):
    of_one_stage = ("--case", "12B", "--stage", "emit")
    dumped = oracle("dump", "--out", str(tmp_path / "dump"), *of_one_stage)
    assert dumped.returncode == 0, dumped.stderr
    expected = tmp_path / "dump" / "12B" / "expected.safetensors"
    checked = oracle("check", str(tmp_path / "dump"), str(expected), *of_one_stage)
    assert checked.returncode == 0 and checked.stdout.splitlines()[-1].startswith("agrees: "), checked.stderr


@pytest.mark.parametrize("is_bare_folder", [False, True], ids=["no folder", "a folder without code"])
@pytest.mark.parametrize(
    "arguments, what", [(("mutants",), "mutants"), (("check", "dump", "mine", "--diagnose"), "--diagnose")]
)
def test_commands_that_need_known_bugs_are_refused(oracle, copy, arguments, what, is_bare_folder):
    folder = copy / "decoding" / "oracle" / "known_bugs"
    if is_bare_folder:  # as deleted from a working tree with compiled files in it
        (folder / "__pycache__").mkdir(parents=True)
    try:
        refused = oracle(*arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr
    assert refused.stderr.startswith(f"{what}: expected the package decoding.oracle.known_bugs"), refused.stderr


@pytest.mark.slow
def test_tests_are_collected_without_known_bugs(copy):
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tutorials" / "reference", copy / "tutorials" / "reference")  # pages that tests read
    shutil.copy(ROOT / "pyproject.toml", copy)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider"]
    collected = subprocess.run(
        [*command, "tests/decoding", "tests/properties"], cwd=copy, capture_output=True, text=True, timeout=600
    )
    assert collected.returncode == 0, collected.stdout[-2000:]
    assert "test_law.py" in collected.stdout and "test_known_bugs.py" not in collected.stdout
