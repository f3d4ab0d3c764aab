"""The pictures of tutorial 07."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from figures import style

LOOKS = {"token by token": style.DRAFTER, "by block": style.ACCEPTED}
MARKERS = {"token by token": "s", "by block": "o"}


def chances(ratios: Sequence[float], kept: Mapping[str, Sequence[float]]) -> Figure:
    """For each run of drafts the probability that it is kept, by each rule."""
    figure, (axes,) = style.panels(height=2.7)
    places = np.arange(1, len(ratios) + 1)
    for offset, (name, probabilities) in zip((-0.18, 0.18), kept.items(), strict=True):
        bars = axes.bar(places + offset, probabilities, 0.36, label=name, **LOOKS[name].patch())
        axes.bar_label(bars, fmt="%.2f")
    axes.set_xticks(places, [f"{i} (p/q = {ratio:g})" for i, ratio in zip(places, ratios, strict=True)])
    axes.set(
        xlabel="drafts in the run (and p/q of its last one)", ylabel="probability that\nthe run is kept", ylim=(0, 1.35)
    )
    axes.legend(loc="upper center", ncols=2)
    return figure


def two_verdicts(
    words: Sequence[str], uniforms: Sequence[float], thresholds: Mapping[str, Sequence[float]], kept: Mapping[str, int],
    weights: Sequence[float],
) -> Figure:  # fmt: skip
    """One block judged by both rules with the same random numbers."""
    figure, panels = style.panels(1, len(thresholds), height=3.2, sharey=True)
    places = np.arange(1, len(words) + 1)
    for axes, (name, heights) in zip(panels, thresholds.items(), strict=True):
        axes.bar(places, heights, 0.7, label="threshold of the run", **LOOKS[name].patch())
        for place, u, height in zip(places, uniforms, heights, strict=True):
            axes.plot([place - 0.35, place + 0.35], [u, u], color=style.POST, linewidth=2)
            axes.text(place, 1.06, "u below" if u < height else "u above", ha="center", fontsize=9)
        axes.set(title=f"{name}: {kept[name]} of {len(words)} kept", ylim=(0, 1.15), xlabel="draft")
        axes.set_xticks(places, [word.strip() for word in words])
    panels[1].plot(places, weights, label="weight of the run", marker="D", linestyle=":", **style.REJECTED.line())
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    panels[0].set_ylabel("threshold (bar), u (line)")
    return figure


def kept_at_least(shares: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray]) -> Figure:
    """How often at least 1, 2, .. drafts are kept, by each rule, with two standard errors."""
    figure, (axes,) = style.panels()
    for name, values in shares.items():
        places = np.arange(1, len(values) + 1) + (0.05 if name == "by block" else -0.05)
        look = LOOKS[name].line()
        axes.errorbar(places, values, 2 * errors[name], marker=MARKERS[name], capsize=3, label=name, **look)
    axes.set(
        xlabel="drafts",
        ylabel="share of blocks that\nkeep at least so many",
        ylim=(0, 1),
        xticks=range(1, len(values) + 1),
    )
    axes.legend()
    return figure


def distances(values: Mapping[str, float], tolerance: float) -> Figure:
    """Total variation of each rule, on a logarithmic scale."""
    figure, (axes,) = style.panels(height=2.2)
    for place, value in enumerate(values.values()):
        is_right = value <= tolerance
        axes.barh(place, value, 0.6, **(style.ACCEPTED if is_right else style.WRONG).patch())
        axes.text(value * 1.3, place, f"{value:.0e}" if is_right else f"{value:.3f}", va="center")
    axes.axvline(tolerance, color=style.POST, linestyle="--")
    axes.set(xscale="log", xlim=(1e-8, 2), xlabel="total variation from the target (dashed: rounding)", ylabel="rule")
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    return figure
