"""Every tutorial runs from top to bottom, each cell twice; its notebook has the same cells, and shows what they show now."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from decoding.bench.machine import device_name
from tests.tutorials.execution import (
    EXECUTED_ON,
    SOURCES,
    cells_of,
    executed,
    is_timing,
    joined,
    png,
    shown_pictures,
    shown_text,
    thumbnail,
    value_of,
    without_labels,
)

DECIMAL = re.compile(r"\d+\.\d+(?:e-?\d+)?")
LONGEST_CELL = 15  # lines
EXECUTE = "run: jupytext --to ipynb --execute on the source"
# Another processor rounds otherwise: where probabilities are nearly equal it draws other words, and all after them differ.
THEIRS, OURS = EXECUTED_ON.read_text(encoding="utf-8").strip(), device_name().split(",")[0]
on_the_same_processor = pytest.mark.skipif(
    OURS != THEIRS, reason=f"the notebooks were executed on {THEIRS}, not {OURS}"
)
each_tutorial = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def same_output(ours: str, theirs: str, *, is_timing: bool = False) -> bool:
    """Equal texts; decimals may differ by one in the last digit, and those of a timing by anything.

    Decimals with an exponent are errors of rounding, which differ between compilers: within a factor of 10.
    """
    if DECIMAL.sub("#", ours) != DECIMAL.sub("#", theirs):
        return False
    return is_timing or all(map(same_decimal, DECIMAL.findall(ours), DECIMAL.findall(theirs)))


def same_decimal(ours: str, theirs: str) -> bool:
    if "e" in ours and "e" in theirs:
        return abs(np.log10(float(ours)) - np.log10(float(theirs))) <= 1
    return (
        len(ours) == len(theirs) and "e" not in ours + theirs
        and abs(int(ours.replace(".", "")) - int(theirs.replace(".", ""))) <= 1
    )  # fmt: skip


# -- the notebook ------------------------------------------------------------------------------------------------------


def test_there_are_tutorials():
    assert SOURCES


@each_tutorial
def test_notebook_is_the_source_executed(source):
    jupytext = pytest.importorskip("jupytext")
    cells, expected = cells_of(source), jupytext.read(source).cells
    assert [(cell["cell_type"], joined(cell["source"]), is_timing(cell)) for cell in cells] == [
        (cell.cell_type, cell.source, is_timing(cell)) for cell in expected
    ], EXECUTE
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code), EXECUTE
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "a warning in the notebook"
    assert sum(len(shown_pictures(cell)) for cell in code) > 1, "a tutorial has pictures"


@each_tutorial
def test_no_cell_is_long(source):
    long = [
        cell["source"]
        for cell in cells_of(source)
        if cell["cell_type"] == "code" and len(joined(cell["source"]).splitlines()) > LONGEST_CELL
    ]
    assert not long, f"more than {LONGEST_CELL} lines: the library or tutorials/figures lacks something"


# -- what it shows -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@on_the_same_processor
@each_tutorial
def test_the_notebook_shows_what_its_cells_print(source):
    """Both times that a cell runs: a cell can be repeated."""
    cells = cells_of(source)
    for runs in executed(source):
        for time, run in zip(("first", "second"), runs, strict=True):
            cell = cells[run.number]
            assert same_output(run.printed, shown_text(cell), is_timing=is_timing(cell)), (
                f"run for the {time} time, cell {run.number} prints\n{run.printed}\nbut the notebook shows\n"
                f"{shown_text(cell)}\n{EXECUTE}"
            )


@pytest.mark.slow
@on_the_same_processor
@each_tutorial
def test_the_notebook_shows_the_pictures_of_its_cells(source):
    cells = cells_of(source)
    for first, _ in executed(source):
        cell = cells[first.number]
        shown = list(map(base64.b64decode, shown_pictures(cell)))
        assert len(shown) == len(first.pictures), f"cell {first.number}: {len(first.pictures)} pictures. {EXECUTE}"
        for ours, theirs in zip(first.pictures, shown, strict=True):
            assert is_timing(cell) or same_picture(ours, theirs), f"another picture in cell {first.number}. {EXECUTE}"


@pytest.mark.slow
@each_tutorial
def test_axes_have_labels(source):
    found = [(run.number, title) for run, _ in executed(source) for title in run.without_labels]
    assert not found, f"(cell, title of the axes): {found}"


def same_picture(ours: bytes, theirs: bytes) -> bool:
    """No part of a 32nd in height and width differs by more than an eighth between black and white."""
    return bool(np.abs(thumbnail(ours) - thumbnail(theirs)).max() < 1 / 8)


# -- the comparisons themselves ----------------------------------------------------------------------------------------


def test_same_output_compares_figures_and_words():
    assert same_output("p = 0.566, 2 of 4", "p = 0.567, 2 of 4")
    assert not same_output("p = 0.566, 2 of 4", "p = 0.568, 2 of 4")
    assert not same_output("p = 0.566, 2 of 4", "p = 0.566, 3 of 4")
    assert not same_output("p = 0.566", "p = 0.5661")
    assert same_output("off by 3.1e-8", "off by 5.2e-8")
    assert not same_output("off by 3.1e-8", "off by 3.1e-6")
    assert not same_output("off by 3.1e-8", "off by 0.003")
    assert same_output("took 0.22 s", "took 12.5 s", is_timing=True)
    assert not same_output("took 0.22 s", "took 0.22 ms", is_timing=True)


def bars(heights: list[float]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7.5, 2.6))
    axes.bar(range(len(heights)), heights)
    axes.set(xlabel="slot", ylabel="position")
    plt.close(figure)
    return figure


def test_same_picture_sees_another_bar():
    assert same_picture(png(bars([1, 2, 3, 4])), png(bars([1, 2.02, 3, 4])))
    assert not same_picture(png(bars([1, 2, 3, 4])), png(bars([1, 2.5, 3, 4])))


def test_axes_without_a_label_are_found():
    labelled, bare, empty = bars([1, 2]), bars([1, 2]), bars([1, 2])
    bare.axes[0].set(xlabel="", title="bare")
    empty.axes[0].set(xticks=[], xlabel="")
    assert [without_labels(figure) for figure in (labelled, bare, empty)] == [[], ["bare"], []]


def test_a_cells_value_is_its_last_line():
    names: dict = {}
    assert value_of("x = 2\nx + 1", "cell", names) == 3 and value_of("x = 5", "cell", names) is None
    assert names["x"] == 5
