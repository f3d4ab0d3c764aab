"""Every tutorial runs from top to bottom, asserts included, and its notebook holds the same cells, executed."""

import json
import runpy
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[2] / "tutorials"
SOURCES = sorted(FOLDER.glob("*.py"))


def test_there_are_tutorials():
    assert SOURCES


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_runs(source):
    matplotlib.use("Agg")
    runpy.run_path(str(source))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_is_the_source_executed(source):
    jupytext = pytest.importorskip("jupytext")
    cells = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    text = lambda cell: "".join(cell["source"]) if isinstance(cell["source"], list) else cell["source"]
    expected = jupytext.read(source).cells
    assert [(cell["cell_type"], text(cell)) for cell in cells] == [(cell.cell_type, cell.source) for cell in expected]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code), "run: jupytext --to ipynb --execute on the source"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})], "no picture in the notebook"
