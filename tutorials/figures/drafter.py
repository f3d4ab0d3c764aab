"""The pictures of tutorial 04: the chain of drafts, where it looks, and what its inputs are worth."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from figures import style
from figures.style import DRAFTER, NEUTRAL, REJECTED, TARGET, Look


def draft_chain(first: str, drafts: Sequence[str], cached: Sequence[str], length: int) -> Figure:
    """The steps of one round as boxes above one strip of cache.

    first:  the newest token, which is not in the cache.
    cached: the newest tokens that are in the cache, of `length` in all.
    """
    figure, (axis,) = style.panels(height=3.7)
    axis.set_axis_off()
    axis.set_xlim(-0.9, len(drafts) + 0.1)
    axis.set_ylim(-0.8, 3.2)
    for i, (given, drafted) in enumerate(zip([first, *drafts], drafts, strict=False)):
        _box(axis, i, 1.7, f"draft step {i + 1}", DRAFTER)
        axis.text(i - 0.2, 0.88, f"embedding of\n{given!r}", ha="center", va="center", fontsize=9)
        _arrow(axis, (i - 0.2, 1.12), (i - 0.2, 1.42), "")
        _arrow(axis, (i, 1.98), (i, 2.75), "")
        axis.text(i, 2.95, repr(drafted), ha="center", va="center", fontsize=11, weight="bold")
        _arrow(axis, (i + 0.22, 0.2), (i + 0.22, 1.42), "", line=":")
        _arrow(axis, (i - 0.62, 1.7), (i - 0.38, 1.7), "")
        axis.text(i - 0.5, 2.22, "target's\nhidden state" if i == 0 else "own\nhidden state", ha="center", fontsize=9)
    width = len(drafts) / len(cached)
    for i, word in enumerate(cached):
        axis.add_patch(Rectangle((i * width - 0.5, -0.25), width, 0.45, **TARGET.patch()))
        axis.text(i * width - 0.5 + width / 2, -0.02, word, ha="center", va="center", fontsize=9)
    below = f"the target's keys and values at positions … to {length - 1}: the same for every step (dotted)"
    axis.text((len(drafts) - 1) / 2, -0.6, below, ha="center", fontsize=9)
    return figure


def _box(axis: Axes, x: float, y: float, text: str, look: Look) -> None:
    style_of = {**look.patch(), "hatch": ""}
    axis.add_patch(FancyBboxPatch((x - 0.33, y - 0.22), 0.66, 0.44, boxstyle="round,pad=0.04", **style_of))
    axis.text(x, y, text, ha="center", va="center", fontsize=9)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str, line: str = "-") -> None:
    axis.annotate(text, end, start, arrowprops={"arrowstyle": "->", "linestyle": line, "shrinkA": 0, "shrinkB": 0})


def looks(weights: np.ndarray, words: Sequence[str]) -> Figure:
    """Attention of each draft step: [steps, keys], the keys labelled with their words."""
    figure, (axis,) = style.panels(height=0.45 * len(weights) + 1.5)
    image = axis.imshow(weights, cmap="Greys", vmin=0, aspect="auto")
    axis.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    axis.set_yticks(range(len(weights)), [str(i + 1) for i in range(len(weights))])
    axis.set_xlabel("the newest tokens in the cache")
    axis.set_ylabel("draft step")
    figure.colorbar(image, ax=axis, label="attention weight")
    return figure


def acceptance(shares: dict[str, Sequence[float]]) -> Figure:
    """A bar for each case and place: the share of texts in which the drafts up to that place are accepted."""
    places = len(next(iter(shares.values())))
    figure, axes = style.panels(columns=places, height=0.3 * len(shares) + 0.8, sharey=True)
    for place, axis in enumerate(axes):
        for row, each in enumerate(shares.values()):
            bar = axis.barh(row, each[place], **(TARGET if row == 0 else DRAFTER).patch())
            axis.bar_label(bar, [f" {each[place]:.2f}"], fontsize=9)
        axis.set_xlim(0, 1.25)
        axis.set_xticks([0, 0.5, 1], ["0", "", "1"])
        axis.set_title(f"draft {place + 1}")
    axes[0].set_yticks(range(len(shares)), list(shares))
    axes[0].invert_yaxis()
    figure.supxlabel("share of texts accepted up to this draft", fontsize=10)
    figure.supylabel("case", fontsize=10)
    return figure


def along_the_chain(drafter_bits: np.ndarray, target_bits: np.ndarray, overlap: np.ndarray) -> Figure:
    """Entropy of both distributions, and the probability that a draft is accepted, at each place."""
    figure, (left, right) = style.panels(columns=2, height=2.5)
    places = np.arange(1, len(overlap) + 1)
    left.plot(places, target_bits, "o-", **TARGET.line(), label="target")
    left.plot(places, drafter_bits, "s--", **DRAFTER.line(), label="drafter")
    left.set_ylim(0, 1.4 * max(target_bits.max(), drafter_bits.max()))
    left.set_ylabel("entropy in bits")
    left.legend(ncols=2)
    right.bar(places, overlap, **NEUTRAL.patch())
    right.set_ylim(0, 1)
    right.set_ylabel("probability of acceptance")
    for axis in (left, right):
        axis.set_xlabel("draft")
        axis.set_xticks(places)
    return figure


def conventions(length: int, window: int) -> Figure:
    """Where each convention puts the query, and which positions it sees in a sliding layer."""
    figure, (axis,) = style.panels(height=1.9)
    for row, (query, oldest) in enumerate(((length, length - 1 - window), (length - 1, length - window))):
        for position in range(length - window - 3, length + 1):
            is_seen = oldest <= position < length
            axis.add_patch(Rectangle((position - 0.5, row - 0.3), 1, 0.6, **(TARGET if is_seen else REJECTED).patch()))
        axis.plot(query, row, "v", color="black", markersize=9)
        axis.text(length + 1, row, f"{length - oldest} keys", va="center", fontsize=9)
    axis.set_xlim(length - window - 4, length + 3)
    axis.set_ylim(1.6, -0.6)
    axis.set_yticks([0, 1], ["transformers", "vLLM"])
    axis.set_xticks(range(length - window - 3, length + 1))
    axis.set_xlabel("position (n − 1 is the newest key; the token to continue from is at n)")
    axis.set_ylabel("convention")
    return figure
