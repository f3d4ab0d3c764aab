"""Imports run one way, so that each package can be read without the next."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gemma4", "drafter", "decoding")  # each may import those before it
UPWARD = {"gemma4/__main__.py": {"decoding"}}  # the command's door, which stands in the package that nobody else ships


def imported(file: Path) -> set[str]:
    """The packages of ours that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "written out in full"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[0] for name in names} & set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    allowed = set(PACKAGES[: PACKAGES.index(package) + 1])
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): imported(file) - allowed for file in files}
    assert {file: names for file, names in found.items() if names} == {
        file: names for file, names in UPWARD.items() if file.startswith(f"{package}/")
    }
