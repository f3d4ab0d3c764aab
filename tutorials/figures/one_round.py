"""The pictures of tutorial 01."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from figures import style


def round_in_boxes(newest: str, drafts: Sequence[str], num_accepted: int, own: str) -> Figure:
    """One round as four rows of boxes: drafted, judged, emitted, kept in the cache."""
    figure, (axes,) = style.panels(height=2.9)
    for column, word in enumerate(drafts, start=1):
        is_kept, is_seen = column <= num_accepted, column <= num_accepted + 1
        verdict = "✓ accepted" if is_kept else "✗ refused" if is_seen else "not judged"
        box(axes, column, 3, word, style.DRAFTER)
        box(axes, column, 2, verdict, style.ACCEPTED if is_kept else style.REJECTED if is_seen else style.NEUTRAL)
        if is_kept:
            box(axes, column, 1, word, style.ACCEPTED)
        box(axes, column, 0, word if is_kept else "taken back", style.ACCEPTED if is_kept else style.REJECTED)
    box(axes, num_accepted + 1, 1, own, style.TARGET)
    box(axes, 0, 0, newest, style.NEUTRAL)
    last = max(len(drafts), num_accepted + 1)
    axes.set(xlim=(-0.5, last + 0.5), ylim=(-0.5, 3.5), xlabel="place in the text")
    axes.set_xticks(range(last + 1), ["newest token", *(f"+{i}" for i in range(1, last + 1))])
    axes.set_yticks(range(4), ["kept in the cache", "emitted as text", "judged by the target", "drafted"])
    axes.set_ylabel("stage (top to bottom)")
    axes.tick_params(length=0)
    return figure


def box(axes: Axes, column: float, row: float, text: str, look: style.Look) -> None:
    """A labelled box; the text stands on plain ground, so that a hatch does not cross it."""
    axes.add_patch(
        FancyBboxPatch((column - 0.42, row - 0.3), 0.84, 0.6, boxstyle="round,pad=0,rounding_size=0.08", **look.patch())
    )
    ground = {"facecolor": look.fill, "edgecolor": "none", "pad": 1.5}
    axes.text(column, row, text.strip(), ha="center", va="center", fontsize=9, bbox=ground)


def pass_times(tokens: Sequence[int], seconds: Sequence[float]) -> Figure:
    """The time of one pass over the number of tokens in it, and what as many passes of one token would take."""
    figure, (axes,) = style.panels()
    milliseconds = 1000 * np.array(seconds)
    axes.plot(tokens, milliseconds, marker="o", **style.TARGET.line())
    separate = milliseconds[0] * np.array(tokens)
    axes.plot(tokens, separate, linestyle="--", marker="x", **style.REJECTED.line())
    axes.text(tokens[-1], milliseconds[-1], "  one pass", va="center")
    axes.text(tokens[-1], separate[-1], "  one pass\n  for each", va="center")
    axes.set(xlabel="tokens in the pass", ylabel="milliseconds", xticks=tokens, xlim=(0.5, tokens[-1] + 1.6))
    axes.set_ylim(bottom=0)
    return figure


def distributions(words: Sequence[Sequence[str]], p: np.ndarray, q: np.ndarray) -> Figure:
    """For each draft the target's and the drafter's probabilities [draft, word] of some words, the drafted one first."""
    figure, panels = style.panels(1, len(words), height=2.9, sharey=True)
    for i, axes in enumerate(panels):
        places = np.arange(len(words[i]))
        axes.barh(places - 0.2, p[i], 0.38, label="target, p", **style.TARGET.patch())
        axes.barh(places + 0.2, q[i], 0.38, label="drafter, q", **style.DRAFTER.patch())
        axes.set(title=f"draft {i + 1}", xlim=(0, 1.02), xticks=[0, 0.5, 1], xlabel="probability")
        axes.set_yticks([])
        for place, word in zip(places, words[i], strict=True):
            longest = max(p[i, place], q[i, place])
            is_right = longest < 0.6
            text = f"▸ {word.strip()}" if place == 0 else word.strip()
            axes.text(
                longest + 0.04 if is_right else longest - 0.04, place, text, va="center", fontsize=9,
                ha="left" if is_right else "right", fontweight="bold" if place == 0 else "normal",
                bbox=None if is_right else {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9},
            )  # fmt: skip
    panels[0].invert_yaxis()
    panels[0].set_ylabel("words (▸ the draft)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def verdicts(words: Sequence[str], thresholds: Sequence[float], uniforms: Sequence[float], num_accepted: int) -> Figure:
    """The random number of each draft on a line from 0 to 1, with the part in which the draft is accepted."""
    figure, (axes,) = style.panels(height=2.4)
    for row, (threshold, u) in enumerate(zip(thresholds, uniforms, strict=True)):
        is_seen = row <= num_accepted
        axes.barh(row, threshold, 0.6, **(style.ACCEPTED if is_seen else style.NEUTRAL).patch())
        axes.barh(row, 1 - threshold, 0.6, left=threshold, **(style.REJECTED if is_seen else style.NEUTRAL).patch())
        axes.plot([u, u], [row - 0.4, row + 0.4], color=style.POST, linewidth=2.5)
        axes.plot(u, row - 0.4, marker="v", color=style.POST)
        verdict = ("✓ accepted" if row < num_accepted else "✗ refused") if is_seen else "not judged"
        axes.text(1.02, row, verdict, va="center")
    axes.set_yticks(range(len(words)), [f"{i}: {word.strip()}" for i, word in enumerate(words, start=1)])
    axes.set(xlim=(0, 1.2), ylim=(len(words) - 0.4, -0.7), xticks=np.linspace(0, 1, 6), ylabel="draft")
    axes.set_xlabel("random number u (▼)")
    axes.spines["bottom"].set_bounds(0, 1)
    return figure


def texts_over_time(speculative: Sequence[tuple[float, int]], alone: Sequence[tuple[float, int]]) -> Figure:
    """How many tokens were there after how many seconds, with and without a drafter."""
    figure, (axes,) = style.panels(height=2.8)
    for points, look, name, marker in (
        (speculative, style.DRAFTER, "with the drafter", "o"),
        (alone, style.TARGET, "target alone", "|"),
    ):
        seconds, tokens = np.array(points).T
        axes.step(seconds, tokens, where="post", marker=marker, markersize=5, label=name, **look.line())
    axes.set(xlabel="seconds since the first token", ylabel="tokens of text")
    axes.legend(loc="lower right")
    return figure
