"""Imports run one way, so that each part can be read without the next; machine forms stay in their folders; nothing is left out
of the README's tables and of the tests.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gemma4", "drafter", "decoding")  # each may import those before it
UPWARD = {"gemma4/__main__.py": {"decoding"}}  # the command's entry point, in the package that no other project ships

# Of decoding: each may import those before it.
LAYERS = (
    (
        *(
            "decoding/sampling.py",
            "decoding/processors.py",
            "decoding/options.py",
            "decoding/state.py",
            "decoding/prompts.py",
        ),
        *("decoding/stats.py", "decoding/stop.py", "decoding/finite.py", "decoding/draft_length.py"),
    ),
    ("decoding/stages",),
    ("decoding/round.py", "decoding/baseline.py"),
    ("decoding/fast",),
    ("decoding/generation.py", "decoding/generation_config.py", "decoding/load.py", "decoding/conversation.py"),
    ("decoding/__init__.py",),
    (
        *("decoding/cli", "decoding/bench", "decoding/planning", "decoding/oracle", "decoding/trace"),
        *("decoding/training", "decoding/course", "decoding/shipped_pair"),
        "decoding/__main__.py",
    ),
)
TOOLS = LAYERS[-1][:-1]
FAST = ("gemma4/fast", "drafter/fast.py", "decoding/fast")


def path_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def files_in(*paths: str) -> list[str]:
    """The Python files under these paths, of the repository's root; each path is there."""
    found = []
    for path in map(ROOT.joinpath, paths):
        assert path.exists(), path
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return list(map(path_of, found))


def is_in(file: str, paths: tuple[str, ...]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)


def imported(file: str) -> set[str]:
    """The files of ours that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {file_of(name) for name in names if name.split(".")[0] in PACKAGES}


def file_of(name: str) -> str:
    """The module that a dotted name is, or is in."""
    parts = name.split(".")
    while parts:
        for path in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
            if path.exists():
                return path_of(path)
        parts.pop()
    raise ValueError(f"{name}: no such module")


# -- imports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    found = {file: {other.split("/")[0] for other in imported(file)} - set(allowed) for file in files_in(package)}
    assert {file: names for file, names in found.items() if names} == {
        file: names for file, names in UPWARD.items() if file.startswith(f"{package}/")
    }


@pytest.mark.parametrize("layer", range(len(LAYERS)), ids=lambda i: ", ".join(LAYERS[i]))
def test_decoding_imports_one_way(layer):
    """The core imports no tool, the stages neither the round nor the loops."""
    allowed = tuple(path for paths in LAYERS[: layer + 1] for path in paths)
    wrong = {
        file: [other for other in imported(file) if is_in(other, ("decoding",)) and not is_in(other, allowed)]
        for file in files_in(*LAYERS[layer])
    }
    assert not {file: others for file, others in wrong.items() if others}


def test_every_file_of_decoding_is_in_one_layer():
    for file in files_in("decoding"):
        assert sum(is_in(file, paths) for paths in LAYERS) == 1, file


def test_plain_code_imports_no_machine_form():
    """Except generation.py, which chooses between them, and conversation.py.  The oracle, too, is of the plain code."""
    plain = [
        file
        for file in files_in(*PACKAGES)
        if not is_in(file, FAST) and (not is_in(file, TOOLS) or is_in(file, ("decoding/oracle",)))
    ]
    importing = {file for file in plain if any(is_in(other, FAST) for other in imported(file))}
    assert importing == {"decoding/generation.py", "decoding/conversation.py"}


def test_only_one_file_asks_for_the_backend():
    assert [file for file in files_in(*PACKAGES) if "default_backend" in (ROOT / file).read_text(encoding="utf-8")] == [
        "gemma4/fast/__init__.py"
    ]


@pytest.mark.parametrize("name", ["optimization_barrier", "ThreadPoolExecutor"])
def test_what_belongs_to_machine_forms_is_only_there(name):
    """Tools may measure it."""
    users = {file for file in files_in(*PACKAGES) if name in (ROOT / file).read_text(encoding="utf-8")}
    assert users and all(is_in(file, FAST) for file in users if not is_in(file, TOOLS))


# -- tables and tests --------------------------------------------------------------------------------------------------


def test_the_reading_order_names_every_file():
    """README or CONTRIBUTING, as a link or in backticks; and no file that is not there."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    named = set(re.findall(r"(?<=`)[\w/.]+\.py(?=`)|(?<=\]\()[\w/.]+\.py(?=\))", text))
    files = files_in("gemma4", "drafter", "decoding/stages", "decoding/fast")
    files += [file for file in files_in("decoding") if file.count("/") == 1]
    assert not {file for file in files if not Path(file).name.startswith("__")} - named
    assert not {name for name in named if "/" in name and not (ROOT / name).exists()}


@pytest.mark.parametrize(
    "folder",
    [
        "gemma4/checkpoints", "gemma4/fast", "decoding/stages", "decoding/fast", "decoding/cli", "decoding/bench",
        "decoding/bench/extra", "decoding/planning", "decoding/oracle", "decoding/trace", "decoding/training",
        "decoding/course",
    ],
)  # fmt: skip
def test_a_folder_names_its_files(folder):
    """In the docstring of its `__init__.py`."""
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")))
    named = set(re.findall(r"\w+", docstring or ""))
    assert {file.stem for file in (ROOT / folder).glob("*.py") if not file.stem.startswith("__")} <= named


# Modules without a test file of their name, and what tests them.
TESTED_ELSEWHERE = {
    "decoding/fast/round_loop.py": "tests/fast/test_loops.py",  # which holds all loops against the plain one
    "gemma4/fast/attention.py": "tests/fast/test_target.py",  # a twin, tested in the model that it is part of
    "gemma4/fast/twin.py": "tests/fast/test_target.py",
}


def expected_test_file(module: str) -> str:
    *folders, name = module.split("/")
    if module == "drafter/fast.py":
        return "tests/fast/test_drafter.py"
    return "/".join(["tests", *(["fast"] if "fast" in folders else folders), f"test_{name}"])


def test_every_module_has_a_test_file_of_its_name():
    """Tools are tested by what their commands do."""
    modules = [file for file in files_in(*PACKAGES) if not is_in(file, TOOLS) and not Path(file).name.startswith("__")]
    without = {module for module in modules if not (ROOT / expected_test_file(module)).exists()}
    assert without == TESTED_ELSEWHERE.keys()
    assert all((ROOT / file).exists() for file in TESTED_ELSEWHERE.values())
    for tool in TOOLS:
        assert list((ROOT / "tests" / tool).glob("test_*.py")), tool
