"""The project's docstrings as Markdown, for mkdocstrings.

A docstring here is prose for an editor: labels such as `Errors:` begin a line, the text of parameters is aligned, examples
begin with `>>>`.  Markdown would run all of that together.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
WITHOUT_PAGES = ("known_bugs", "__main__")
LABELS = {"Errors", "Source", "Shapes", "Memory", "Rounding", "Example", "Examples"}


class Markdown(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for obj in list(everything(pkg)):
            text = obj.docstring.value if obj.docstring else ""
            names = {parameter.name for parameter in getattr(obj, "parameters", ())}
            names |= {name for name, member in obj.members.items() if isinstance(member, griffe.Attribute)}
            text = with_links(to_markdown(text, names), obj, names)
            if isinstance(obj, griffe.Class):
                text = f"{text}\n\n{take_fields(obj)}".strip()
            if isinstance(obj, griffe.Attribute) and str(obj.value).startswith("TypeVar"):
                del obj.parent.members[obj.name]
            if text:
                obj.docstring = griffe.Docstring(text, parent=obj)


def everything(obj: griffe.Object) -> Iterator[griffe.Object]:
    """The object and all that it defines."""
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):  # not an alias, which is an import
            yield from everything(member)


def take_fields(cls: griffe.Class) -> str:
    """The fields of a record as in the source, with their comments; neither they nor a module's weights are members then."""
    attributes = [member for member in cls.members.values() if member.is_attribute and "property" not in member.labels]
    methods = [range(member.lineno, member.endlineno + 1) for member in cls.members.values() if member.is_function]
    fields = [member for member in attributes if not any(member.lineno in method for method in methods)]
    for member in attributes:
        del cls.members[member.name]
    if not fields:
        return ""
    first, last = min(field.lineno for field in fields), max(field.endlineno for field in fields)
    source = "\n".join(cls.lines_collection[cls.filepath][first - 1 : last])
    return f"```python\n{textwrap.dedent(source)}\n```"


# -- prose -------------------------------------------------------------------------------------------------------------


def to_markdown(docstring: str, names: set[str]) -> str:
    """names: what may be a label beside LABELS, the parameters of a function or the fields of a class."""
    paragraphs = re.split(r"\n\s*\n", docstring.strip("\n"))
    return "\n\n".join(paragraph(text, names) for text in paragraphs)


def paragraph(text: str, names: set[str]) -> str:
    lines = text.splitlines()
    is_indented = [line.startswith("    ") for line in lines]
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if all(is_indented):
        return text  # a code block
    if sum(bool(re.search(r"\S {3,}\S", line)) and not label_of(line, names) for line in lines) > 1:
        return f"```text\n{text}\n```"  # aligned by hand
    is_title = len(lines[0]) < 80 and not lines[0].endswith((".", ",")) and not label_of(lines[0], names)
    if is_title and len(lines) > 1 and all(is_indented[1:]):
        return f"**{lines[0]}**\n\n" + "\n".join(line.strip() for line in lines[1:])
    return "\n".join(with_lists(lines, names))


def with_lists(lines: list[str], names: set[str]) -> list[str]:
    """Each labelled line begins a list item, to which the lines indented below belong; a single label begins a paragraph."""
    labels = [label_of(line, names) for line in lines]
    bullet, indent = ("- ", "    ") if sum(map(bool, labels)) > 1 else ("", "")
    out: list[str] = []
    in_list = False
    for line, label in zip(lines, labels, strict=True):
        belongs = in_list and (line.startswith(" ") or not bullet)
        if out and (label and not in_list or in_list and not label and not belongs):
            out.append("")
        if label:
            out.append(f"{bullet}**{label}:** {line[len(label) + 1 :].strip()}")
        else:
            out.append(indent + line.strip() if belongs else line)
        in_list = bool(label) or belongs
    return out


def label_of(line: str, names: set[str]) -> str | None:
    """`Errors` of "Errors: ...", `token, hidden` of "token, hidden: ..."; None for any other line."""
    match = re.match(r"([A-Za-z_]\w*(?:, \w+)*):\s", line + " ")
    if match and all(name in names or name in LABELS for name in match[1].split(", ")):
        return match[1]
    return None


# -- links -------------------------------------------------------------------------------------------------------------


def with_links(text: str, obj: griffe.Object, names: set[str]) -> str:
    """Names in backticks link to their pages: of a file, and of a function or class in this package; `names` do not."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        path = module_of_file(name, Path(str(obj.filepath))) or path_of(name, obj)
        return f"[{match[0]}][{path}]" if path and path != obj.path and name not in names else match[0]

    return re.sub(r"(?<![`\[])`([\w./]+)`(?![`\]])", link, text)


def module_of_file(name: str, here: Path) -> str | None:
    """The module in a file of that name, looked for beside this one and from the root."""
    for folder in (here.parent, ROOT):
        file = folder / name
        if file.suffix == ".py" and file.is_file() and file.is_relative_to(ROOT):
            parts = file.relative_to(ROOT).with_suffix("").parts
            is_shown = parts[0] in ("gemma4", "drafter", "decoding") and not set(parts) & set(WITHOUT_PAGES)
            return ".".join(parts).removesuffix(".__init__") if is_shown else None
    return None


def path_of(name: str, obj: griffe.Object) -> str | None:
    """The full name of what `name` means there, if it is a function or class that has a page."""
    for parent in (obj.module, obj.module.parent, obj.package):
        found = parent
        for part in name.split("."):
            found = found.members.get(part) if isinstance(found, griffe.Object) else None
        if isinstance(found, (griffe.Function, griffe.Class)):
            parts = found.path.split(".")
            is_shown = not set(parts) & set(WITHOUT_PAGES) and not any(part.startswith("_") for part in parts)
            return found.path if is_shown else None
    return None
