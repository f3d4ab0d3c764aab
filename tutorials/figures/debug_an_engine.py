"""Pictures of `10_debug_an_engine`: where an engine's tensors agree with the oracle's."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from decoding.oracle.compare import Report, Result, Status
from figures import style

OF_A_LAYER = ("query", "key", "value", "attention", "mlp", "output")
LOOKS = {Status.AGREES: (style.ACCEPTED, ""), Status.DIFFERS: (style.WRONG, "×")}


def columns(layers: int) -> list[tuple[str, str]]:
    """(label, beginning and end of the name of its tensors, joined by a star), in the order of computation."""
    in_layers = [(f"{i}.{what}", f"forward/layers.{i}.*{what}") for i in range(layers) for what in OF_A_LAYER]
    return [
        ("embedding", "forward/embedding*"),
        *in_layers,
        ("logits", "forward/logits*"),
        ("accept: count", "accept/*num_accepted"),
        ("accept: next token", "accept/*next_token"),
        ("distribution", "law/*"),
    ]


def status_of(report: Report, pattern: str) -> Status | None:
    """DIFFERS if any tensor of the pattern differs; None if none was given.  `law/` is the enumeration of acceptance."""
    begin, end = pattern.split("*")

    def belongs(result: Result) -> bool:
        name = result.name if result.case == "acceptance" else result.name.split("/", 1)[1]
        name = name.removeprefix("acceptance/")
        is_enumeration = result.case == "acceptance"
        return name.startswith(begin) and name.endswith(end) and is_enumeration == begin.startswith("law")

    found = {result.status for result in report.results if belongs(result)}
    return next((status for status in (Status.DIFFERS, Status.AGREES) if status in found), None)


def first_frame(report: Report, layers: int = 3) -> int | None:
    """The number of the first column that differs."""
    statuses = [status_of(report, pattern) for _, pattern in columns(layers)]
    return statuses.index(Status.DIFFERS) if Status.DIFFERS in statuses else None


def units_of(report: Report) -> dict[str, float]:
    """The largest error of each tensor of the pass, in units of its tolerance, by its name without the case and the stage."""
    of_pass = [result for result in report.results if result.stage == "forward" and result.units is not None]
    return {result.name.split("/", 2)[2]: result.units for result in of_pass if result.units is not None}


def grid(reports: Mapping[str, Report], layers: int = 3) -> Figure:
    """One row a report: green agrees, orange hatched with a cross differs, and a thick frame around the first that differs."""
    names = columns(layers)
    figure, (axes,) = style.panels(height=2 + 0.34 * len(reports))
    for row, report in enumerate(reports.values()):
        first = first_frame(report, layers)
        for column, (_, pattern) in enumerate(names):
            look, symbol = LOOKS.get(status_of(report, pattern), (style.NEUTRAL, "?"))
            axes.bar(column, 0.86, bottom=row - 0.43, width=0.9, **look.patch())
            axes.text(column, row, symbol, ha="center", va="center", fontsize=11, weight="bold")
        if first is not None:
            axes.bar(first, 0.9, bottom=row - 0.45, width=0.94, fill=False, edgecolor="black", linewidth=2.6)
    axes.set_xticks(range(len(names)), [label for label, _ in names], rotation=90, fontsize=9)
    axes.set_yticks(range(len(reports)), list(reports), fontsize=9)
    axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(len(reports) - 0.5, -0.5))
    axes.set_xlabel("named tensor, in the order of computation: layer.name")
    axes.set_ylabel("engine")
    return figure


def sizes(errors: Mapping[str, Mapping[str, float]]) -> Figure:
    """The error of tensors along the pass, in units of the tolerance, one line an engine; a logarithmic scale."""
    figure, (axes,) = style.panels(height=4.2)
    marks = (("x", style.WRONG), ("o", style.ACCEPTED), ("v", style.TARGET), ("s", style.DRAFTER))
    names = [name for name in next(iter(errors.values())) if "." not in name or name.split(".")[-1] in OF_A_LAYER]
    for (engine, units), (mark, look) in zip(errors.items(), marks, strict=True):
        values = [max(units[name], 1e-4) for name in names]
        axes.plot(values, marker=mark, markersize=5, linewidth=1, label=engine, **look.line())
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.text(len(names) - 1, 1.3, "1 unit: the tolerance", fontsize=9, ha="right")
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), [name.removeprefix("layers.") for name in names], rotation=90, fontsize=9)
    axes.set_xlabel("named tensor, in the order of computation: layer.name")
    axes.set_ylabel("largest error, in units")
    figure.legend(fontsize=9, loc="outside upper center", ncols=len(errors))
    return figure


def two_distributions(words: Sequence[str], expected: np.ndarray, theirs: np.ndarray, title: str = "") -> Figure:
    """Bars side by side: the expected probabilities of some tokens, and an engine's."""
    figure, (axes,) = style.panels(height=2.6)
    places = np.arange(len(words))
    axes.bar(places - 0.2, expected, width=0.38, label="expected", **style.TARGET.patch())
    axes.bar(places + 0.2, theirs, width=0.38, label="this engine", **style.WRONG.patch())
    axes.set_xticks(places, words)
    axes.set(xlabel="token", ylabel="probability", title=title)
    axes.legend(fontsize=9)
    return figure
