"""The command's first second, which imports take: Ctrl-C, the environment, other packages of our names.  Real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ["generate", "In the beginning"]


def start(cwd: Path, module: str, *arguments: str, **variables: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cwd),
        **variables,
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A run of the tests in the background hands on an ignored SIGINT, and the command respects that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def assert_one_line(process: subprocess.Popen, message: str) -> None:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("gemma4-mtp: error: ") and message in err


@pytest.mark.slow
@pytest.mark.parametrize("module", ["gemma4", "decoding"])
def test_interrupted_at_any_moment(module, tmp_path):
    """Imports, loading, compiling.  Before our first line can run, Python itself ends the process, in its own words: by the
    signal, or while it still reads its own `site` module.
    """
    for moment in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0):
        process = start(tmp_path, module, *COMMAND, "--max-new-tokens=400")
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        at_startup = process.returncode == -signal.SIGINT and moment <= 0.1
        by_python = at_startup or err.startswith("Fatal Python error: init_import_site")
        assert by_python or (process.returncode, err) == (130, ""), f"after {moment} s: {process.returncode}, {err}"


@pytest.mark.parametrize("module", ["gemma4", "decoding"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "maybe"), ("JAX_DEFAULT_MATMUL_PRECISION", "nonsense"), ("JAX_NUM_CPU_DEVICES", "many")],
)
def test_a_setting_that_jax_refuses(name, value, module, tmp_path):
    process = start(tmp_path, module, *COMMAND, **{name: value})
    assert_one_line(process, "JAX refuses a setting in the environment (")


@pytest.mark.parametrize(
    ("module", "other"),
    [("gemma4", "drafter"), ("gemma4", "decoding"), ("decoding", "drafter"), ("decoding", "gemma4")],
)
def test_beside_a_folder_of_someone_elses(module, other, tmp_path):
    (tmp_path / other).mkdir()
    (tmp_path / other / "__init__.py").write_text("raise SystemExit('this code must not run')")
    assert_one_line(
        start(tmp_path, module, *COMMAND), f"the package '{other}' at {tmp_path}/{other}/__init__.py is not"
    )


def test_a_program_of_ones_own_gets_the_exception(tmp_path):
    (tmp_path / "gemma4").mkdir()
    (tmp_path / "gemma4" / "__init__.py").write_text("raise SystemExit('this code must not run')")
    (tmp_path / "program.py").write_text("import decoding")
    _, err = start(tmp_path, "program").communicate(timeout=120)
    assert "Traceback" in err and "ImportError: the package 'gemma4' at" in err
