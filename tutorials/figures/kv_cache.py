"""The pictures of tutorial 03: slots, rings, and who reads whose keys and values."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from figures import style
from figures.style import ACCEPTED, NEUTRAL, REJECTED, TARGET, WRONG, Look


def ring_over_time(held: np.ndarray, lengths: Sequence[int], sizes: Sequence[int], window: int) -> Figure:
    """A row for each forward pass: the position in each slot after it.

    held:    [passes, slots], positions; negative where the slot is empty.
    lengths: the committed tokens after each pass.
    sizes:   how many tokens each pass wrote.
    """
    figure, (axis,) = style.panels(height=0.42 * len(held) + 1.0)
    for row, (positions, length) in enumerate(zip(held, lengths, strict=True)):
        before = lengths[row - 1] if row else 0
        for slot, position in enumerate(positions.tolist()):
            look = _look(position, length, window)
            _cell(axis, slot, row, look, f"{position}" if position >= 0 else "")
            if before <= position < before + sizes[row]:
                axis.add_patch(Rectangle((slot - 0.42, row - 0.42), 0.84, 0.84, fill=False, linewidth=2.2))
    _grid(axis, held.shape[1], len(held))
    axis.set_xlabel("slot")
    axis.set_ylabel("forward pass")
    axis.set_yticks(range(len(held)), [f"{row + 1}" for row in range(len(held))])
    names = {"in the window": TARGET, "older: no query sees it": NEUTRAL, "rejected": REJECTED}
    handles = [Patch(**look.patch(), label=name) for name, look in names.items()]
    handles.append(Patch(facecolor="none", edgecolor="black", linewidth=2.2, label="written by this pass"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=9)
    return figure


def _look(position: int, length: int, window: int) -> Look:
    """Of a slot that holds `position` when `length` tokens are committed, as the query at `length` sees it."""
    if position < 0:
        return Look("#ffffff", "#bbbbbb")
    if position >= length:
        return REJECTED
    return TARGET if position > length - window else NEUTRAL


def mask_on_slots(read_as: np.ndarray, really: np.ndarray, mask: np.ndarray, queries: Sequence[int]) -> Figure:
    """A row for each query: as which position the mask reads each slot, and whether the query sees it.

    read_as, really: [slots], positions; a slot that is read as another position than it really holds is hatched.
    mask:            [queries, slots].
    """
    figure, (axis,) = style.panels(height=0.42 * len(queries) + 1.0)
    for row in range(len(queries)):
        for slot, position in enumerate(read_as.tolist()):
            lies = position != really[slot]
            look = TARGET if mask[row, slot] else REJECTED if lies else NEUTRAL
            _cell(axis, slot, row, look, f"{position}")
    _grid(axis, len(read_as), len(queries))
    axis.set_xlabel("slot")
    axis.set_ylabel("query")
    axis.set_yticks(range(len(queries)), [f"at {query}" for query in queries])
    names = {"seen": TARGET, "hidden": NEUTRAL, "hidden, and holds something else": REJECTED}
    handles = [Patch(**look.patch(), label=name) for name, look in names.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=9)
    return figure


def who_reads_whose(source: Sequence[int], is_sliding: Sequence[bool]) -> Figure:
    """A row for each layer; a square (sliding) or a circle (full) in the column of the layer whose K/V it reads."""
    layers = len(source)
    figure, (axis,) = style.panels(height=0.28 * layers + 0.9)
    for layer, owner in enumerate(source):
        look = TARGET if owner == layer else style.DRAFTER
        size = {"markersize": 15, "markeredgewidth": 1.5}
        axis.plot(owner, layer, "s" if is_sliding[layer] else "o", **look.line(), **size)
        axis.text(owner + 0.35, layer, "its own" if owner == layer else f"layer {owner}'s", va="center", fontsize=9)
    axis.set_xlim(-0.7, layers - 0.3)
    axis.set_ylim(layers - 0.3, -0.7)
    axis.set_xticks(range(layers))
    axis.set_yticks(range(layers), [f"{i} {'sliding' if s else 'full'}" for i, s in enumerate(is_sliding)])
    axis.set_xlabel("layer whose keys and values are read")
    axis.set_ylabel("reading layer")
    axis.grid(alpha=0.3)
    return figure


def memory(sizes: dict[str, tuple[float, float]]) -> Figure:
    """A bar for each form of the cache: bytes of its full and of its sliding layers."""
    figure, (axis,) = style.panels(height=0.45 * len(sizes) + 0.9)
    for row, (full, sliding) in enumerate(np.array(list(sizes.values())) / 1e9):
        axis.barh(row, full, **TARGET.patch(), label="full layers" if row == 0 else None)
        axis.barh(row, sliding, left=full, **style.DRAFTER.patch(), label="sliding layers" if row == 0 else None)
        axis.text(full + sliding, row, f" {full + sliding:.2f} GB", va="center")
    axis.set_yticks(range(len(sizes)), list(sizes))
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel("gigabytes (10⁹ bytes)")
    axis.set_ylabel("savings")
    axis.legend()
    return figure


def errors_by_position(errors: dict[str, np.ndarray], tolerance: float) -> Figure:
    """The largest error of the logits at each position, one line for each cache, on a logarithmic axis.

    Errors of less than a third of the tolerance are rounding, which differs between machines: they are drawn at that third.
    """
    figure, (axis,) = style.panels(height=2.6)
    for (name, values), look, line in zip(errors.items(), (ACCEPTED, WRONG), ("-", "--"), strict=False):
        axis.plot(np.maximum(values, tolerance / 3), line, label=name, **look.line())
    axis.axhline(tolerance, color="black", linestyle=":", linewidth=1)
    axis.text(0, tolerance / 9, "rounding stays below the dotted line", fontsize=9)
    axis.set_yscale("log")
    axis.set_ylim(tolerance / 20, 10)
    axis.set_xlabel("position in the text")
    axis.set_ylabel("largest error of a logit")
    axis.legend(loc="center left")
    return figure


def _cell(axis: Axes, column: float, row: float, look: Look, text: str) -> None:
    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look.patch()))
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if look.hatch else None
    axis.text(column, row, text, ha="center", va="center", bbox=background)


def _grid(axis: Axes, columns: int, rows: int) -> None:
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_xticks(range(columns))
    axis.tick_params(length=0)
