"""The command that makes the README's picture."""

import struct
import subprocess
import sys

import pytest

from decoding.trace import screenshot
from tests.decoding.trace.conftest import EXAMPLE


@pytest.mark.browser
def test_a_picture(browser, tmp_path):
    """In a process of its own, because Playwright runs once in a process."""
    picture = tmp_path / "picture.png"
    command = [
        sys.executable,
        "-m",
        "decoding.trace.screenshot",
        str(EXAMPLE),
        str(picture),
        "--width=700",
        "--height=500",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24]) == (700, 500)


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    assert screenshot.main([str(tmp_path / "none.json"), "x.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(screenshot, "BROWSERS", ("no-such-browser",))
    assert screenshot.main([str(EXAMPLE), str(tmp_path / "x.png")]) == 2
    err = capsys.readouterr().err
    assert ("no browser found, looked for no-such-browser" in err or "playwright is missing" in err) and err.count(
        "\n"
    ) == 1
