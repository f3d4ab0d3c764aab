"""Another package called `drafter` or `decoding` is detected before any of its code, or any code built on it, runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma4.shadowing import MARKER, check_not_shadowed, is_command, one_line

ROOT = Path(__file__).parents[2]


def write(directory: Path, name: str, code: str) -> Path:
    (directory / name).mkdir()
    (directory / name / "__init__.py").write_text(code)
    return directory / name


def test_ours_pass():
    check_not_shadowed("drafter", "decoding")


def test_absent_passes():
    check_not_shadowed("no_package_has_this_name")


def test_other_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, "ours_by_marker", f'"""Text."""\n\n{MARKER}  # and why\n')
    check_not_shadowed("ours_by_marker")
    location = write(tmp_path, "somebody_elses", "raise SystemExit('this code must not run')")
    with pytest.raises(ImportError) as caught:
        check_not_shadowed("ours_by_marker", "somebody_elses")
    assert str(caught.value) == (
        f"the package 'somebody_elses' at {location / '__init__.py'} is not gemma4-mtp's, but hides it: if the folder is "
        "yours, rename it or start Python in another one; otherwise install gemma4-mtp into a fresh virtual environment, or "
        "remove the other (pip uninstall somebody_elses) and install gemma4-mtp again"
    )
    assert caught.value.name == "somebody_elses"


def test_bare_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "only_a_folder").mkdir()
    with pytest.raises(ImportError, match=f"the package 'only_a_folder' at {tmp_path}/only_a_folder is not"):
        check_not_shadowed("only_a_folder")


def run(tmp_path: Path, code: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds packages in `tmp_path` first."""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )


def test_import_says_so(tmp_path):
    write(tmp_path, "drafter", "print('this code must not run')")
    done = run(tmp_path, "import decoding")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: the package 'drafter' at {tmp_path}/drafter")


@pytest.mark.parametrize("name", ["drafter", "decoding"])
def test_command_says_so_in_one_line(name, tmp_path):
    write(tmp_path, name, "print('this code must not run')")
    done = run(tmp_path, "import sys; from gemma4.__main__ import main; sys.exit(main())")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"gemma4-mtp: error: the package '{name}' at {tmp_path}/{name}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["-m", "generate", "x"], ["python", "-m", "gemma4", "generate", "x"], True),
        (["-m"], ["python", "-O", "-mdecoding"], True),
        (["-m", "-m", "gemma4"], ["python", "-m", "pytest", "-m", "gemma4"], False),
        (["/bin/gemma4-mtp", "--help"], ["python", "/bin/gemma4-mtp", "--help"], True),
        (["my_program.py", "gemma4-mtp"], ["python", "my_program.py", "gemma4-mtp"], False),
        (["-c"], ["python", "-c", "import gemma4"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_which_process_is_the_command(argv, orig_argv, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert is_command() is expected


def test_while_the_command_starts_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, "somebody_elses", "raise SystemExit('this code must not run')")
    monkeypatch.setattr(sys, "argv", ["/bin/gemma4-mtp"])
    with pytest.raises(SystemExit) as exit:
        check_not_shadowed("somebody_elses")
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1
    assert err.startswith(f"gemma4-mtp: error: the package 'somebody_elses' at {tmp_path}/")


def test_one_line():
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("\x1b[2J\x7f\x9b\u202e\udcff é東") == "\\x1b[2J\\x7f\\x9b\\u202e\\udcff é東"
    assert one_line(1000 * "x") == 1000 * "x" and len(one_line(1001 * "x")) == 1005
