"""The pictures of tutorial 05: clusters as cells, recall, acceptance, and bytes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from figures import style
from figures.style import ACCEPTED, DRAFTER, NEUTRAL, RESIDUAL, TARGET, WRONG

LINES = ((TARGET, "o-"), (ACCEPTED, "s--"), (DRAFTER, "^-."), (WRONG, "v:"))


def cells(scores: np.ndarray, searched: Sequence[int], best: int, columns: int = 16) -> Figure:
    """A cell for each cluster, with its number, shaded by its centroid's score; the searched ones outlined, the best token's
    cluster starred.
    """
    rows = -(-len(scores) // columns)
    figure, (axis,) = style.panels(height=0.55 * rows + 0.7)
    shade = np.full(rows * columns, np.nan)
    shade[: len(scores)] = scores
    image = axis.imshow(shade.reshape(rows, columns), cmap="Greys", alpha=0.75, aspect="auto")
    for cluster in range(len(scores)):
        row, column = divmod(cluster, columns)
        text = f"{cluster}\n★" if cluster == best else f"{cluster}"
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(column, row, text, ha="center", va="center", fontsize=9, bbox=white)
        if cluster in searched:
            axis.add_patch(
                Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=TARGET.edge, lw=2.5)
            )
    axis.set_xticks([])
    axis.set_yticks([])
    figure.colorbar(image, ax=axis, label="score of the centroid", shrink=0.8)
    handles = [
        Patch(facecolor="none", edgecolor=TARGET.edge, linewidth=2.5, label="searched"),
        Patch(facecolor="none", edgecolor="none", label="★ holds the best token of all"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def over_searched(curves: dict[str, np.ndarray], label: str, marked: int | None = None) -> Figure:
    """Lines over the number of searched clusters, 1, 2, 4 … on a logarithmic axis; a hairline at the `marked` number."""
    figure, (axis,) = style.panels(height=2.8)
    for (name, values), (look, line) in zip(curves.items(), LINES, strict=False):
        at = 2 ** np.arange(int(np.log2(len(values))) + 1)
        axis.plot(at, values[at - 1], line, **look.line(), label=name)
    if marked:
        axis.axvline(marked, color="black", linewidth=1)
        axis.text(marked * 1.05, 0.02, "the drafter's number", fontsize=9)
    axis.set_xscale("log", base=2)
    axis.set_xticks(at, [str(each) for each in at])
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("searched clusters")
    axis.set_ylabel(label)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def bytes_read(sizes: dict[str, tuple[float, float]]) -> Figure:
    """For each model a bar for the dense and one for the clustered head, in megabytes, on a logarithmic axis."""
    figure, (axis,) = style.panels(height=0.6 * len(sizes) + 1.0)
    for row, pair in enumerate(sizes.values()):
        for offset, size, look, name in zip(
            (-0.2, 0.2), pair, (NEUTRAL, RESIDUAL), ("dense", "clustered"), strict=True
        ):
            bar = axis.barh(row + offset, size / 1e6, height=0.36, **look.patch(), label=name if row == 0 else None)
            axis.bar_label(bar, [f" {size / 1e6:.3g} MB"], fontsize=9)
    axis.set_xscale("log")
    axis.set_yticks(range(len(sizes)), list(sizes))
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel("megabytes read for one draft (10⁶ bytes)")
    axis.set_ylabel("drafter of")
    axis.legend(fontsize=9)
    return figure
