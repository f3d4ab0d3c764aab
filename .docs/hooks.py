"""The pages of the documentation site, taken from the repository's own files; MkDocs calls the functions at the end.

A page has the path of its file, so links between pages work as they do in a checkout.  `gemma4/cache.py` becomes the page
`gemma4/cache.md`, with the docstrings of that module; a notebook becomes a page with its outputs.  Nothing is imported, so the
site needs none of the project's dependencies.
"""

import ast
import json
import posixpath
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGES = ("gemma4", "drafter", "decoding")
WITHOUT_PAGES = (
    "decoding/oracle/known_bugs/",  # tutorials/reference/known_bugs.md describes these
    "decoding/course/catalogue/",  # tutorials/assignments has a page for each
)
READING_ORDER = "reading_order.md"
TRACE = "tutorials/reference/trace_example.json"  # shown as the page that `gemma4-mtp trace` makes of it


# -- which files are pages ---------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Page -> file, for every module; a package's page is its folder's index."""
    pages = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT)
            if file.stem != "__main__" and not path.as_posix().startswith(WITHOUT_PAGES):
                name = "index.md" if file.stem == "__init__" else f"{file.stem}.md"
                pages[(path.parent / name).as_posix()] = file
    return pages


def module_name(page: str) -> str:
    return page.removesuffix(".md").removesuffix("/index").replace("/", ".")


def texts(folder: str) -> list[str]:
    """The Markdown files and notebooks of a folder, README first, then in the order of their names."""
    files = [file for file in (ROOT / folder).iterdir() if file.suffix in (".md", ".ipynb")]
    files.sort(key=lambda file: (file.stem != "README", file.name))
    return [file.relative_to(ROOT).as_posix() for file in files]


def navigation() -> list[Any]:
    tutorials = [page.replace(".ipynb", ".md") for page in texts("tutorials")]
    return [
        {"Home": ["README.md", READING_ORDER, "CONTRIBUTING.md", "CHANGELOG.md"]},
        {"Stages": entries("decoding/stages", key=stage_number)},
        {"Tutorials": tutorials},
        {"Assignments": texts("tutorials/assignments")},
        {"Reference": texts("tutorials/reference")},
        {"API": [{package: entries(package)} for package in PACKAGES]},
    ]


def entries(folder: str, key: Callable[[str], Any] = str) -> list[Any]:
    """The modules of a folder for the navigation, the package itself first, then the folders below it."""
    pages = sorted((page for page in modules() if posixpath.dirname(page) == folder), key=key)
    pages.sort(key=lambda page: not page.endswith("index.md"))
    below = sorted(
        {posixpath.dirname(page) for page in modules() if posixpath.dirname(posixpath.dirname(page)) == folder}
    )
    named = [page if page.endswith("index.md") else {Path(page).stem: page} for page in pages]
    return named + [{Path(name).name: entries(name)} for name in below if name != "decoding/stages"]


def stage_number(page: str) -> tuple[str, str]:
    """The order of a round: a stage's docstring begins with its number."""
    docstring = ast.get_docstring(ast.parse(modules()[page].read_text(encoding="utf-8"))) or ""
    number = re.match(r"Stage (\d)", docstring)
    return number[1] if number else "", page


def reading_order() -> str:
    """That section of the README, as a page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Reading order\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    return f"# Reading order\n{section[1] if section else ''}"


# -- what a page holds -------------------------------------------------------------------------------------------------


def notebook(file: Path) -> str:
    """The cells as Markdown: text, code, printed output, pictures."""
    parts: list[str] = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(fenced("".join(output["text"]), "text"))
            elif picture := output.get("data", {}).get("image/png"):
                parts.append(f"![output](data:image/png;base64,{''.join(picture.split())})")
            else:
                parts.append(fenced("".join(output["data"]["text/plain"]), "text"))
    return "\n\n".join(parts)


def fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def outside_code(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is text and not code."""
    fence = None
    for line in markdown.splitlines():
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and fence in (None, mark[1]):
            fence = mark[1] if fence is None else None
            yield line, False
        else:
            yield line, fence is None


def with_links(markdown: str, page: str, pages: set[str]) -> str:
    """Links to source files lead to the pages of their modules, and so do the bare names of source files.

    Links to other files of the repository, which the site does not have, become plain text.  A link to a file that does not
    exist stays, so that `--strict` reports it.
    """

    def target(path: str) -> str | None:
        """The page for a path in the repository."""
        as_page = re.sub(r"\.(ipynb|py)$", ".md", path)
        as_page = re.sub(r"\.json$", ".html", as_page)
        return next((page for page in (path, as_page, f"{path}/README.md", f"{path}/index.md") if page in pages), None)

    def link(match: re.Match[str]) -> str:
        text, path, anchor = match.groups()
        if re.match(r"\w+:|#|$", path):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if found := target(path):
            return f"[{text}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{anchor or ''})"
        return text if (ROOT / path).exists() else match[0]

    def name(match: re.Match[str]) -> str:
        found = target(match[1])
        return f"[`{match[1]}`]({posixpath.relpath(found, posixpath.dirname(page) or '.')})" if found else match[0]

    lines = []
    for line, is_text in outside_code(markdown):
        if is_text:
            line = re.sub(r"(?<![\[`\w])`([\w/]+/\w+\.py)`(?!\])", name, line)
            line = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, line)
        lines.append(line)
    return "\n".join(lines)


# -- MkDocs ------------------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = navigation()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(path: str, **source: Any) -> None:
        files.append(File.generated(config, path, **source))

    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        add(page, abs_src_path=str(ROOT / page))
    add(READING_ORDER, content=reading_order())
    for page in texts("tutorials") + texts("tutorials/assignments") + texts("tutorials/reference"):
        if page.endswith(".ipynb"):
            add(page.replace(".ipynb", ".md"), content=notebook(ROOT / page))
        else:
            add(page, abs_src_path=str(ROOT / page))
    for file in (ROOT / "tutorials").rglob("*.*"):
        if file.suffix in (".png", ".txt"):  # pictures and printouts
            add(file.relative_to(ROOT).as_posix(), abs_src_path=str(file))
    build_page = runpy.run_path(str(ROOT / "decoding/trace/page.py"))["build_page"]
    example = json.loads((ROOT / TRACE).read_text(encoding="utf-8"))
    add(TRACE.replace(".json", ".html"), content=build_page(example))
    for page in modules():
        add(page, content=f"---\ntitle: {module_name(page)}\n---\n\n::: {module_name(page)}\n")
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    return with_links(markdown, page.file.src_uri, {file.src_uri for file in files})
