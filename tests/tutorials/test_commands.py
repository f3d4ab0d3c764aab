"""Every `gemma4-mtp` command that the README, the tutorials and the printouts show is one that the command line understands."""

import re
import shlex
from pathlib import Path

import pytest

from decoding.cli.main import parse

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
PAGES = [ROOT / "README.md", *sorted(TUTORIALS.rglob("*.md")), *sorted(TUTORIALS.rglob("*.txt"))]
COMMAND = re.compile(r"^(?:\$ |.*&& \.venv/bin/)?gemma4-mtp ([^|#\n]*)|`gemma4-mtp ([^`|]*)`", re.MULTILINE)


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> list[tuple[str, str]]:
    texts = [(path_of(page), page.read_text(encoding="utf-8")) for page in PAGES]
    return sorted(
        {(name, (block or inline).strip()) for name, text in texts for block, inline in COMMAND.findall(text)}
    )


def test_commands_are_found_on_every_page_that_has_some():
    pages = [page for page in PAGES if re.search(r"\bgemma4-mtp [a-z-]", page.read_text(encoding="utf-8"))]
    assert {name for name, _ in commands()} == set(map(path_of, pages))
    assert {path_of(page) for page in PAGES if page.name in ("speed.md", "oracle_format.md", "known_bugs.md")} <= {
        name for name, _ in commands()
    }
    assert ("tutorials/reference/results/heads.txt", "bench --heads") in commands()
    assert ("README.md", 'generate "The LORD is my" --temperature 0.6 --seed 2') in commands()


@pytest.mark.parametrize("page, command", commands())
def test_command_parses(page, command):
    try:
        parse(shlex.split(command))
    except SystemExit as end:  # --help
        assert end.code == 0
