"""The pictures of tutorial 06."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style


def overlap(words: Sequence[str], p: np.ndarray, q: np.ndarray) -> Figure:
    """p and q side by side, and what they have in common."""
    figure, panels = style.panels(1, 3, sharey=True)
    for axes, probs, look, title in (
        (panels[0], p, style.TARGET, "target, p"),
        (panels[1], q, style.DRAFTER, "drafter, q"),
        (panels[2], np.minimum(p, q), style.ACCEPTED, "in common, min(p, q)"),
    ):
        bars = axes.bar(words, probs, **look.patch())
        axes.bar_label(bars, fmt="%.2f")
        axes.set(title=title, xlabel="word")
    panels[0].set(ylabel="probability", ylim=(0, 1.15 * max(p.max(), q.max())))
    return figure


def two_parts(words: Sequence[str], p: np.ndarray, q: np.ndarray) -> Figure:
    """How each word comes about: as an accepted draft, or from the residual distribution; together they are p."""
    figure, (axes,) = style.panels(height=3)
    stacked(axes, words, p, np.minimum(p, q))
    axes.legend(loc="upper right")
    return figure


def stacked(axes: Axes, words: Sequence[str], p: np.ndarray, accepted: np.ndarray) -> None:
    axes.bar(words, accepted, label="accepted drafts: min(p, q)", **style.ACCEPTED.patch())
    axes.bar(words, p - accepted, bottom=accepted, label="after a refusal: p − min(p, q)", **style.RESIDUAL.patch())
    for place, height in enumerate(p):
        axes.plot([place - 0.48, place + 0.48], [height, height], color=style.POST, label="p" if place == 0 else None)
    axes.set(xlabel="word", ylabel="probability", ylim=(0, 1.25 * p.max()))


def overlap_and_counts(overlap: np.ndarray, counted: np.ndarray) -> Figure:
    """For many real steps the share of accepted drafts over the sum of min(p, q)."""
    figure, (axes,) = style.panels(height=3)
    axes.plot([0, 1], [0, 1], linestyle="--", label="equal", color=style.POST)
    axes.plot(overlap, counted, "o", markersize=5, label="one step of the pair", **style.ACCEPTED.line())
    axes.set(
        xlabel="Σ min(p, q), computed", ylabel="share of drafts accepted,\ncounted", xlim=(0, 1.02), ylim=(0, 1.02)
    )
    axes.legend(loc="upper left")
    return figure


def biases(words: Sequence[str], p: np.ndarray, emitted: Mapping[str, np.ndarray]) -> Figure:
    """What each wrong rule emits, beside p."""
    figure, panels = style.panels(1, len(emitted), height=2.8, sharey=True)
    places = np.arange(len(words))
    for axes, (name, probs) in zip(panels, emitted.items(), strict=True):
        axes.bar(places - 0.2, p, 0.4, label="target, p", **style.TARGET.patch())
        axes.bar(places + 0.2, probs, 0.4, label="what the rule emits", **style.WRONG.patch())
        axes.set(title=name, xlabel="word")
        axes.set_xticks(places, words)
    panels[0].set_ylabel("probability")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
