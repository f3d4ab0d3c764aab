"""Imports run one way, so that each package can be read without the next; and the reading order leaves nothing out."""

import ast
import re
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


def modules(folder: str) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in (ROOT / folder).glob("*.py") if not file.name.startswith("__")}


def in_reading_order() -> set[str]:
    """Files that the README's table names; one without a folder lies in the folder of the one before it."""
    files, folder = set(), ""
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\| \d+ \|", line):
            for name in re.findall(r"`([\w/]+\.py)`", line.split("|")[2]):
                folder = name.rsplit("/", 1)[0] if "/" in name else folder
                files.add(f"{folder}/{name.rsplit('/', 1)[-1]}")
    return files


def test_the_reading_order_names_every_file():
    assert in_reading_order() == modules("gemma4") | modules("drafter") | modules("decoding")


@pytest.mark.parametrize("folder", ["decoding/bench", "decoding/oracle"])
def test_a_folder_names_its_files(folder):
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
    named = set(re.findall(r"\w+", docstring))
    assert {Path(file).stem for file in modules(folder)} <= named
