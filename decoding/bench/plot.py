"""Plots of a measurement.  matplotlib is an extra: it is imported only when a plot is asked for."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma4.config import FULL, SLIDING

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(file: Path) -> None:
    """To be called before anything is measured.  Errors: ValueError if the plot could not be drawn or written."""
    if file.suffix not in SUFFIXES:
        raise ValueError(f"--plot {file}: expected a file name that ends in {', '.join(SUFFIXES)}")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"--plot {file}: no such directory {file.absolute().parent}; make it first")
    if not os.access(file.absolute().parent, os.W_OK):
        raise ValueError(f"--plot {file}: no permission to write into {file.absolute().parent}; name another directory")
    if file.is_dir():
        raise ValueError(f"--plot {file}: is a directory; give the name of a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'gemma4-mtp[tutorials]'")


def plot(found: dict[str, Any], file: Path) -> None:
    """Draw the record of `measure` or of `measure_contexts`.  After an error the file is as it was before."""
    if "contexts" in found:
        with saved_figure(file, columns=2) as (left, right):
            _draw_contexts(found["contexts"], left, right)
            left.figure.suptitle(f"{found['name']}: one token more")
    else:
        with saved_figure(file) as axes:
            _draw_speed_up(found, axes)


@contextlib.contextmanager
def saved_figure(file: Path, columns: int = 1) -> Iterator[Any]:
    """Axes to draw on, written to `file` at the end.  After an error the file is as it was before."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    size = (6, 4) if columns == 1 else (5 * columns, 4)
    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained")
    scratch = file.with_stem(f".{file.stem}-unfinished")
    try:
        yield axes
        figure.savefig(scratch, dpi=150)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
        plt.close(figure)


def _draw_speed_up(found: dict[str, Any], axes: Any) -> None:
    for batch in found["batches"]:
        entries = [entry for entry in batch["loops"] if "predicted" in entry]
        gammas = [entry["draft_length"] for entry in entries]
        (line,) = axes.plot(gammas, [entry["speed_up"] for entry in entries], "o-", label=f"batch {batch['batch']}")
        predicted = [entry["predicted"] for entry in entries]
        axes.plot(gammas, predicted, "--", color=line.get_color(), label=f"batch {batch['batch']}, predicted")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="draft length", ylabel="speed-up over the autoregressive loop", title=found["subject"]["name"])
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({entry["draft_length"] for batch in found["batches"] for entry in batch["loops"]} - {0}))
    axes.legend()


def _draw_contexts(entries: list[dict[str, Any]], left: Any, right: Any) -> None:
    contexts = [entry["context"] for entry in entries]
    for kind in (SLIDING, FULL):
        if kind in entries[0]["seconds"]:
            left.plot(contexts, [entry["seconds"][kind] * 1e6 for entry in entries], "o-", label=kind.replace("_", " "))
        right.plot(contexts, [entry["cache_bytes"][kind] / 1e6 for entry in entries], "o-", label=kind.split("_")[0])
    left.set(xlabel="context (tokens)", ylabel="attention of one layer (us)")
    right.set(xlabel="context (tokens)", ylabel="cache (MB)")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.legend()
