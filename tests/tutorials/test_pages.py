"""The README and the pages of tutorials/: links work, nothing is left out, figures are in the printouts, examples run."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import decoding.load

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "tutorials").rglob("*.md"))]
GLOSSARY, SPEED = ROOT / "tutorials" / "glossary.md", ROOT / "tutorials" / "reference" / "speed.md"
RESULTS = ROOT / "tutorials" / "reference" / "results"
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
PLAIN_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)*(?!\w)(?!\.\d)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    """The text under a heading, up to the next one of the same level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text_of(page), re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no section {title!r}"
    return found[1]


def links(page: Path) -> list[str]:
    return [target for _, target in LINK.findall(without_code(text_of(page)))]


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_relative_and_lead_somewhere(page):
    for target in links(page):
        if target.startswith("https://"):
            continue
        path = target.split("#")[0]
        assert "://" not in target and not path.startswith("/"), f"{page.name}: expected a relative link, got {target}"
        assert (page.parent / path).exists(), f"{page.name}: no such file: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_backticks_exist(page):
    found = re.findall(r"`((?:tests|tutorials|gemma4|drafter|decoding)/[\w/.-]+)`", text_of(page))
    missing = [path for path in found if not (ROOT / path).exists()]
    assert not missing, f"{page.name}: no such file: {missing}"
    assert page != CONTRIBUTING or len(found) > 10


def test_every_page_and_printout_is_linked():
    linked = {(page.parent / target.split("#")[0]).resolve() for page in PAGES for target in links(page)}
    wanted = {page for page in PAGES if page not in (README, ROOT / "tutorials" / "README.md")}
    wanted |= set(RESULTS.iterdir()) | set((ROOT / "tutorials").rglob("*.png"))
    assert wanted and wanted <= linked, sorted(str(file.relative_to(ROOT)) for file in wanted - linked)


# -- the reading order -------------------------------------------------------------------------------------------------

FOLDERS = ("gemma4", "gemma4/checkpoints", "gemma4/fast", "drafter", "decoding", "decoding/stages", "decoding/fast")
FIRST = ["gemma4/functional.py", "gemma4/cache.py", "gemma4/model.py", "drafter/model.py", "decoding/round.py"]


def test_the_reading_order_has_every_file_once():
    rows = [line for line in section(README, "Reading order").splitlines() if line.startswith("|")]
    listed = [target for row in rows for _, target in LINK.findall(row) if target.endswith(".py")]
    files = [file for folder in (*FOLDERS, "decoding/cli") for file in (ROOT / folder).glob("*.py")]
    expected = [str(file.relative_to(ROOT)) for file in files if not file.stem.startswith("__")]
    assert sorted(listed) == sorted(expected)
    assert listed[:5] == FIRST


def test_the_reading_order_shows_the_paths_that_it_links():
    for text, target in LINK.findall(section(README, "Reading order")):
        assert text.rstrip("/") == target or " " in text  # a picture has a text of its own


# -- the glossary ------------------------------------------------------------------------------------------------------


def terms() -> list[str]:
    table = text_of(GLOSSARY).split("## ")[0]
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]


def test_the_glossary_is_alphabetical_and_has_each_term_once():
    lowered = [term.casefold() for term in terms()]
    assert len(lowered) > 40
    assert lowered == sorted(lowered)
    names = [name.strip() for term in lowered for name in term.split(",")]
    assert len(names) == len(set(names))


def defined_names(file: Path) -> set[str]:
    """Functions, classes, constants and fields that a file defines, on any level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text_of(file))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_glossary_names_what_the_code_defines():
    found = re.findall(r"\[([\w/]+\.py):(\w+)\]\(\.\./([\w/]+\.py)\)", text_of(GLOSSARY))
    assert len(found) == len(terms())
    for shown, name, linked in found:
        assert shown == linked
        assert name in defined_names(ROOT / linked), f"{linked} defines no {name}"


# -- figures -----------------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in PLAIN_NUMBER.findall(text)]


def is_printed(number: str, printed: list[str]) -> bool:
    """As it is, or rounded from what has six decimals or more."""
    decimals = len(number.partition(".")[2])
    long = [other for other in printed if re.fullmatch(r"\d+\.\d{6,}", other)]
    return number in printed or any(f"{float(other):.{decimals}f}" == number for other in long)


def figures_and_printouts() -> list[tuple[str, list[str], list[str]]]:
    """For each section that links printouts: its numbers, those in tables and all decimals, and the printed ones."""
    sections = [("README", section(README, "How fast"), ROOT)]
    for part in re.split(r"^## ", text_of(SPEED), flags=re.MULTILINE)[1:]:
        sections.append((part.splitlines()[0], part, SPEED.parent))
    found = []
    for title, text, folder in sections:
        files = {folder / target for _, target in LINK.findall(text) if target.endswith(".txt")}
        if not files:
            continue
        bare = LINK.sub("", re.sub(r"`[^`]*`", "", text))
        rows = "\n".join(line for line in bare.splitlines() if line.startswith("|"))
        shown = numbers(rows) + [number for number in numbers(bare) if "." in number]
        printed = [number for file in sorted(files) for number in numbers(text_of(file))]
        found.append((title, shown, printed))
    return found


@pytest.mark.parametrize("title, shown, printed", figures_and_printouts(), ids=lambda value: str(value)[:20])
def test_figures_are_in_the_printouts(title, shown, printed):
    assert shown, title
    missing = [number for number in shown if not is_printed(number, printed)]
    assert not missing, f"{title}: not in the printouts that this section links: {missing}"


def test_every_printout_begins_with_its_machine_and_its_command():
    for file in RESULTS.iterdir():
        lines = text_of(file).splitlines()
        assert lines[0].startswith("# machine: "), file.name
        first = next(line for line in lines if not line.startswith("# "))
        assert re.match(r"\$ (gemma4-mtp |python |\w+=\S+ python )", first), f"{file.name}: {first}"


def machine_forms() -> list[str]:
    files = [*(ROOT / "gemma4" / "fast").glob("*.py"), *(ROOT / "decoding" / "fast").glob("*.py")]
    return ["drafter/fast.py", *(str(file.relative_to(ROOT)) for file in files if file.stem != "__init__")]


def test_every_machine_form_has_a_row():
    linked = [target for _, target in LINK.findall(section(SPEED, "Machine forms and what they gain"))]
    assert sorted(path for path in linked if path not in ("results/twins.txt", "twins.py")) == sorted(
        f"../../{path}" for path in machine_forms()
    )


@pytest.mark.slow
def test_the_script_measures_every_machine_form(monkeypatch):
    """With small arrays, each form once (whole loops are left out); its lines are those of the printout."""
    spec = importlib.util.spec_from_file_location("twins", SPEED.parent / "twins.py")
    twins = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twins)
    small = {"VOCABULARY": 4096, "EXPERTS": 8, "SLOTS": 64, "SLOTS_OF_A_CHUNK": 1024, "SLOTS_IN_BLOCKS": 2048}
    for name, value in small.items():
        monkeypatch.setattr(twins, name, value)
    names = []
    for forms in twins.FORMS:
        for name, reference, machine in forms():
            names.append(name)
            if forms is not twins.loop_forms:
                reference(), machine()

    def without_figures(lines: list[str]) -> list[str]:
        return [re.sub(r"\d[\d,]*", "#", line) for line in lines]

    printed = re.findall(r"^ *[\d.]+ +[\d.]+ +[\d.]+ x  \S+  (.*)$", text_of(RESULTS / "twins.txt"), re.MULTILINE)
    assert without_figures(names) == without_figures(printed)
    measured = set(re.findall(r"[\w/]+\.py", "\n".join(names)))
    without_time = {"attention.py", "memoize.py", "twin.py"}  # what others are made of
    without_time |= {"embedding.py", "auto_rounds.py"}  # for several devices; another draft length, not another form
    assert measured | without_time == {path if "drafter" in path else path.split("/")[-1] for path in machine_forms()}


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_the_readme_runs(capsys):
    from decoding.stages.accept import decide

    example, more, *_ = re.findall(r"^```python\n(.*?)^```$", text_of(README), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    text, tokens_per_round = capsys.readouterr().out.rsplit(maxsplit=1)
    assert text and 1 <= float(tokens_per_round) <= 5
    assert names["logits"].shape[:2] == (1, len(names["prompt"]))
    names |= {"target_dir": decoding.load.SHIPPED / "target", "my_rule": decide}
    exec(compile(more, "README.md", "exec"), names)
    assert [len(row) for row in names["out"].logprobs] == [len(row) for row in names["out"].tokens]


@pytest.mark.slow
def test_the_readme_shows_what_the_first_command_prints(capsys):
    from decoding.cli.main import main

    command = re.search(r"\.venv/bin/gemma4-mtp (generate .*)", text_of(README))[1]
    shown = re.search(r"^```text\n(.*?)^```$", text_of(README), re.MULTILINE | re.DOTALL)[1]
    assert main([*shlex.split(command), "--marks"]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()
