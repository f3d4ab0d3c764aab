"""Every tutorial runs from top to bottom, asserts included; its notebook has the same cells, and shows what they print now."""

import contextlib
import io
import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[2] / "tutorials"
SOURCES = sorted(FOLDER.glob("*.py"))
DECIMAL = re.compile(r"\d+\.\d+")
TIMING = "timing"  # the tag of a cell whose figures differ from run to run


def cells_of(source: Path) -> list[dict]:
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]


def joined(text: str | list[str]) -> str:
    """A notebook holds a text as one string, or line by line."""
    return text if isinstance(text, str) else "".join(text)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def printed(cell: dict) -> str:
    return "".join(joined(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def same_output(ours: str, theirs: str, *, is_timing: bool = False) -> bool:
    """Equal texts; decimals may differ by one in the last digit, and those of a timing by anything."""
    if DECIMAL.sub("#", ours) != DECIMAL.sub("#", theirs):
        return False
    pairs = zip(DECIMAL.findall(ours), DECIMAL.findall(theirs), strict=True)
    return is_timing or all(
        len(a) == len(b) and abs(int(a.replace(".", "")) - int(b.replace(".", ""))) <= 1 for a, b in pairs
    )


def test_there_are_tutorials():
    assert SOURCES


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_runs_and_prints_what_the_notebook_shows(source):
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells_of(source)):
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(joined(cell["source"]), f"{source.name}, cell {number}", "exec"), namespace)
        plt.close("all")
        assert same_output(out.getvalue(), printed(cell), is_timing=TIMING in tags(cell)), (
            f"cell {number} of {source.stem} prints\n{out.getvalue()}\nbut the notebook shows\n{printed(cell)}\n"
            "run: jupytext --to ipynb --execute on the source"
        )


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_is_the_source_executed(source):
    jupytext = pytest.importorskip("jupytext")
    cells, expected = cells_of(source), jupytext.read(source).cells
    assert [(cell["cell_type"], joined(cell["source"]), tags(cell)) for cell in cells] == [
        (cell.cell_type, cell.source, tags(cell)) for cell in expected
    ]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code), "run: jupytext --to ipynb --execute on the source"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "a warning in the notebook"
    assert [output for output in outputs if "image/png" in output.get("data", {})], "no picture in the notebook"


def test_same_output_compares_figures_and_words():
    assert same_output("p = 0.566, 2 of 4", "p = 0.567, 2 of 4")
    assert not same_output("p = 0.566, 2 of 4", "p = 0.568, 2 of 4")
    assert not same_output("p = 0.566, 2 of 4", "p = 0.566, 3 of 4")
    assert not same_output("p = 0.566", "p = 0.5661")
    assert same_output("took 0.22 s", "took 12.5 s", is_timing=True)
    assert not same_output("took 0.22 s", "took 0.22 ms", is_timing=True)
