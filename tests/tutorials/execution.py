"""Runs a tutorial's notebook once for all tests: every code cell twice in a row, with what it prints and the pictures it shows.

A cell's value is shown as a notebook shows it: the last line, if that is an expression.
"""

import ast
import contextlib
import functools
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SOURCES = sorted(TUTORIALS.glob("[0-9]*.py"))
EXECUTED_ON = TUTORIALS / "executed_on.txt"  # the processor that all notebooks were executed on
TIMING = "timing"  # the tag of a cell whose figures differ from run to run


class Execution(NamedTuple):
    """What one run of one code cell did."""

    number: int  # of the cell, all cells counted from 0
    printed: str
    pictures: list[bytes]  # PNG
    without_labels: list[str]  # the titles of axes that lack a label


def cells_of(source: Path) -> list[dict]:
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]


def joined(text: str | list[str]) -> str:
    """A notebook holds a text as one string, or line by line."""
    return text if isinstance(text, str) else "".join(text)


def is_timing(cell: dict) -> bool:
    return TIMING in cell["metadata"].get("tags", [])


def executed(source: Path) -> list[tuple[Execution, Execution]]:
    """Both runs of each code cell.  Errors: whatever a cell raises, with the cell in a note."""
    outcome = execute_all(source)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@functools.cache
def execute_all(source: Path) -> list[tuple[Execution, Execution]] | Exception:
    """For `executed`: an error is kept, too, so that no test runs the cells again."""
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    sys.path.insert(0, str(TUTORIALS))
    try:
        with matplotlib.rc_context():
            return [
                (execute(number, cell, names), execute(number, cell, names))
                for number, cell in enumerate(cells_of(source))
                if cell["cell_type"] == "code"
            ]
    except Exception as error:
        return error
    finally:
        sys.path.remove(str(TUTORIALS))
        plt.close("all")


def execute(number: int, cell: dict, names: dict[str, Any]) -> Execution:
    plt.close("all")
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            value = value_of(joined(cell["source"]), f"cell {number}", names)
    except Exception as error:
        error.add_note(f"in cell {number}:\n{joined(cell['source'])}")
        raise
    figures = [plt.figure(open_one) for open_one in plt.get_fignums()]
    if isinstance(value, Figure):
        figures.append(value)
    elif value is not None:
        out.write(repr(value))
    unlabelled = [title for figure in figures for title in without_labels(figure)]
    return Execution(number, out.getvalue(), list(map(png, figures)), unlabelled)


def value_of(code: str, name: str, names: dict[str, Any]) -> Any:
    """Runs the code; the value of its last line, if that is an expression, and otherwise None."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names) if last else None


def without_labels(figure: Figure) -> list[str]:
    """The titles of axes without a label on x or y.  An axis without ticks and numbers needs none."""

    def needs_one(axis: Any) -> bool:
        shows = any(label.get_text() for label in axis.get_ticklabels() if label.get_visible())
        return shows and not axis.get_label_text()

    figure.draw_without_rendering()
    shared = figure.get_supxlabel(), figure.get_supylabel()
    return [
        axes.get_title() or repr(axes)
        for axes in figure.axes
        if axes.axison
        and any(needs_one(axis) and not label for axis, label in zip((axes.xaxis, axes.yaxis), shared, strict=True))
    ]


def png(figure: Figure) -> bytes:
    """As a notebook saves it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def shown_pictures(cell: dict) -> list[str]:
    """The PNGs of a notebook's cell, in base 64."""
    found = [output["data"].get("image/png") for output in cell["outputs"] if "data" in output]
    return [joined(picture) for picture in found if picture]


def shown_text(cell: dict) -> str:
    """What a notebook's cell printed, and its value if that is no picture."""
    texts = [joined(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"]
    data = [output["data"] for output in cell["outputs"] if "data" in output]
    return "".join(texts + [joined(each["text/plain"]) for each in data if "image/png" not in each])


def thumbnail(picture: bytes) -> np.ndarray:
    """Grey, 32 x 32, from 0 to 1: the same for small differences of fonts and of matplotlib's versions."""
    from PIL import Image  # matplotlib needs it, too

    return np.asarray(Image.open(io.BytesIO(picture)).convert("L").resize((32, 32), Image.Resampling.BOX)) / 255
