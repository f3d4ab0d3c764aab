"""One look for all pictures: readable in print, without colours, and with any colour vision.

Fills are light forms of Okabe and Ito's colours, each with an outline that is dark enough on white (WCAG: 3 to 1) and a hatch
of its own.  What a colour says, a hatch, a symbol or a word says too.

Source: Okabe & Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

import dataclasses
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.5  # inches: a notebook's column


@dataclasses.dataclass(frozen=True)
class Look:
    """How one kind of thing is drawn in every picture."""

    fill: str
    edge: str
    hatch: str = ""

    def patch(self) -> dict[str, Any]:
        """For bars and patches."""
        return {"facecolor": self.fill, "edgecolor": self.edge, "hatch": self.hatch, "linewidth": 1.0}

    def line(self) -> dict[str, Any]:
        """For lines and markers."""
        return {"color": self.edge, "markerfacecolor": self.fill, "markeredgecolor": self.edge}


TARGET = Look("#9ecae9", "#0072B2")
DRAFTER = Look("#f3c463", "#8A5A00", "//")
ACCEPTED = Look("#8fd6bf", "#00664b")
REJECTED = Look("#ffffff", "#595959", "xx")
RESIDUAL = Look("#d5ecf9", "#0072B2", "..")
NEUTRAL = Look("#e0e0e0", "#595959")
WRONG = Look("#f2b58e", "#A03C00", "\\\\")
POST = "#000000"  # a uniform random number


def use() -> None:
    """Call it once, before the first picture."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "hatch.linewidth": 0.7,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


def panels(rows: int = 1, columns: int = 1, height: float = 2.6, **settings: Any) -> tuple[Figure, list[Axes]]:
    """A figure as wide as the page, and its axes in reading order.

    A notebook shows it where it is the value of a cell, its last line: `figures.name.picture(numbers)`.  pyplot forgets it, for
    it would show it a second time.
    """
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, **settings)
    plt.close(figure)
    return figure, list(axes.flat)
