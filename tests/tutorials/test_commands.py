"""Every `gemma4-mtp` command that the README and the tutorials show is one that the command line understands."""

import re
import shlex
from pathlib import Path

import pytest

from decoding.cli.main.main import make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorials").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ |.*&& \.venv/bin/)?gemma4-mtp ([^|#\n]*)|`gemma4-mtp ([^`|]*)`", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    texts = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    return sorted(
        {(name, (block or inline).strip()) for name, text in texts for block, inline in COMMAND.findall(text)}
    )


def test_commands_are_found_on_every_page():
    assert {name for name, _ in commands()} == {page.name for page in PAGES}
    assert ("speed.md", "bench --heads") in commands()
    assert ("README.md", 'generate "In the beginning"') in commands()


@pytest.mark.parametrize("page, command", commands())
def test_command_parses(page, command):
    try:
        make_parser().parse_args(shlex.split(command))
    except SystemExit as end:  # --help
        assert end.code == 0
