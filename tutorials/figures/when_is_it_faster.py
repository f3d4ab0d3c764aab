"""Pictures of `08_when_is_it_faster`: a round to scale, the cost of a longer pass, and speed-ups over the draft length."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from decoding.bench.cost import Times
from figures import style

MARKS = "osv^Dx"


def timeline(times: Times, gamma: int, tokens: float, title: str = "") -> Figure:
    """Two lanes in milliseconds, to scale: a round with its draft and its pass, and the steps that yield as many tokens."""
    figure, (axes,) = style.panels(height=2.3)
    axes.barh(1, 1e3 * times.draft, height=0.6, label="draft", **style.DRAFTER.patch())
    axes.barh(1, 1e3 * times.verify, left=1e3 * times.draft, height=0.6, label="verify", **style.ACCEPTED.patch())
    step = 1e3 * times.autoregressive
    for number in range(int(tokens)):
        axes.barh(
            0, step, left=number * step, height=0.6, label="one step" if not number else None, **style.TARGET.patch()
        )
    axes.barh(0, (tokens % 1) * step, left=int(tokens) * step, height=0.6, **style.TARGET.patch())
    axes.set_yticks([1, 0], [f"a round, γ = {gamma}", f"{tokens:.1f} steps"])
    axes.set(xlabel="milliseconds", ylabel="the same text by", title=title, ylim=(-0.5, 1.5))
    figure.legend(fontsize=9, loc="outside upper right", ncols=3)
    return figure


def lines(
    series: Mapping[str, Mapping[int, float]],
    x: str,
    y: str,
    *,
    best: str | None = None,
    reference: float | None = None,
    log: bool = False,
    title: str = "",
) -> Figure:
    """One line with its own marker for each series.  best: the series whose highest point is marked."""
    figure, (axes,) = style.panels(height=3)
    looks = (style.TARGET, style.WRONG, style.ACCEPTED, style.DRAFTER, style.NEUTRAL)
    for (name, points), mark, look in zip(series.items(), MARKS, looks, strict=False):
        dash = "--" if name.startswith("predicted") else "-"
        axes.plot(list(points), list(points.values()), dash, marker=mark, label=name, **look.line())
    if best is not None:
        points = series[best]
        top = max(points, key=lambda gamma: points[gamma])
        axes.annotate(f"best: {top}", (top, points[top]), (top, points[top] * 1.06), ha="center", fontsize=9)
    if reference is not None:
        axes.axhline(reference, color="black", linestyle=":", linewidth=1)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y, title=title)
    figure.legend(fontsize=9, loc="outside upper center", ncols=max(1, min(3, len(series))))
    return figure


def small_multiples(
    tables: Mapping[str, Mapping[str, Mapping[int, float]]], x: str, y: str, ticks: Sequence[int]
) -> Figure:
    """A panel for each table, with the same series in each; a dotted line at 1."""
    figure, panels = style.panels(columns=len(tables), height=3, sharey=True)
    looks = (style.TARGET, style.WRONG, style.ACCEPTED, style.DRAFTER)
    for axes, (title, series) in zip(panels, tables.items(), strict=True):
        for (name, points), mark, look in zip(series.items(), MARKS, looks, strict=False):
            label = name if axes is panels[0] else None
            axes.plot(list(points), list(points.values()), marker=mark, markersize=4, label=label, **look.line())
        axes.axhline(1, color="black", linestyle=":", linewidth=1)
        axes.set(xlabel=x, title=title, xticks=ticks)
    panels[0].set_ylabel(y)
    figure.legend(fontsize=9, loc="outside upper center", ncols=len(next(iter(tables.values()))))
    return figure
