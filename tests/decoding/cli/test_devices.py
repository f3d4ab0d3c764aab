"""`--devices` and `--hosts`: what is refused, and the text of a pair that is split over devices and over processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from decoding.cli import devices
from decoding.cli.main import main

ROOT = Path(__file__).parents[3]
REQUEST = ["generate", "In the beginning", "--max-new-tokens=20", "--draft-length=2", "--json"]


def directories(pair_dir: Path) -> list[str]:
    return [f"--target={pair_dir / 'target'}", f"--drafter={pair_dir / 'drafter'}"]


def refused(capsys, *arguments: str) -> str:
    assert main([*REQUEST, *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1, err
    return err


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr("decoding.cli.main.keep_compiled_code", lambda: None)


@pytest.mark.parametrize("count", [-1, 0, 2, 10**9])
def test_more_devices_than_there_are(count, capsys, pair_dir):
    err = refused(capsys, *directories(pair_dir), f"--devices={count}")
    assert f"--devices: expected 1 to 1, the cpu devices that JAX finds, got {count}" in err
    assert f"device_count={count} makes virtual ones" in err


def test_heads_are_divided(capsys, pair_dir, monkeypatch):
    """Before any weights are read."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr("decoding.cli.generate.load_pair", lambda *_, **__: pytest.fail("it loads"))
    heads = json.loads((pair_dir / "target" / "config.json").read_text())["num_attention_heads"]
    err = refused(capsys, *directories(pair_dir), "--devices=3")
    assert (
        heads == 4
        and f"expected a divisor of the target's {heads} attention heads, which are split: 1, 2, 4; got 3" in err
    )


def test_the_shipped_pairs_heads(capsys, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert "expected a divisor of the target's 4 attention heads" in refused(capsys, "--devices=8")


@pytest.mark.parametrize("hosts", ["", "here", "localhost,2,0", "localhost:1,2,2", "localhost:1,2", "a b:1,2,0"])
def test_processes_that_are_not_described(hosts, capsys):
    err = refused(capsys, "--devices=2", f"--hosts={hosts}")
    assert f"--hosts: expected {devices.HOSTS} with an INDEX below COUNT, or auto, got {hosts!r}" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts=auto"], "--hosts needs --devices"),
        (["--hosts=auto", "--devices=1", "--timings"], "leave it or --hosts"),
    ],
)
def test_options_that_belong_together(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(devices, "connect", lambda hosts: None)
    assert message in refused(capsys, *arguments)


def test_process_0_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(devices, "CONNECT_SECONDS", 0)
    err = refused(capsys, "--devices=2", "--hosts=localhost:1,2,1")
    assert "--hosts: nothing listens at localhost:1 after 0 s" in err


def begin(*arguments: str, flags: str = "") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "gemma4", *REQUEST, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tokens(process: subprocess.Popen) -> list[int]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)["tokens"]


@pytest.fixture(scope="module")
def expected(pair_dir) -> list[int]:
    found = tokens(begin(*directories(pair_dir)))
    assert len(found) == 20
    return found


@pytest.mark.slow
def test_several_devices_of_one_process(pair_dir, expected):
    flags = "--xla_force_host_platform_device_count=2"
    assert tokens(begin(*directories(pair_dir), "--devices=2", flags=flags)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["streamed", "on_device", "plain"])
def test_two_processes(loop, pair_dir, expected):
    """On loopback: the first one prints the text of one process, the second one nothing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = [*directories(pair_dir), f"--loop={loop}", "--devices=2"]
    both = [begin(*where, f"--hosts=localhost:{port},2,{index}") for index in range(2)]
    try:
        assert tokens(both[0]) == expected
        out, err = both[1].communicate(timeout=60)
        assert (both[1].returncode, out) == (0, ""), err
    finally:
        for process in both:
            process.kill()
