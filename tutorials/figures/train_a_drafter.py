"""Pictures of `09_train_a_drafter`: what a draft step reads and learns, and acceptance while a drafter is trained."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from figures import style

MARKS = "osv^"


def anchor(words: Sequence[str], committed: int, steps: int) -> Figure:
    """A text from left to right, a row for each draft step of one anchor: what it sees, reads, and learns to predict."""
    figure, (axes,) = style.panels(height=0.85 + 0.42 * (steps + 1))
    for step in range(1, steps + 1):
        for place, _ in enumerate(words):
            if place < committed:
                axes.barh(step, 0.9, left=place - 0.45, height=0.7, **style.TARGET.patch())
            elif place == committed + step - 1:
                axes.barh(step, 0.9, left=place - 0.45, height=0.7, **style.DRAFTER.patch())
                axes.text(place, step, "e", ha="center", va="center", fontsize=10, weight="bold")
            elif place == committed + step:
                axes.barh(step, 0.9, left=place - 0.45, height=0.7, **style.ACCEPTED.patch())
                axes.text(place, step, "p", ha="center", va="center", fontsize=10, weight="bold")
        before = "hidden state of the target" if step == 1 else f"its own, of step {step - 1}"
        axes.text(len(words) - 0.3, step, before, va="center", fontsize=9)
    axes.set_xticks(range(len(words)), words, fontsize=9, rotation=30)
    axes.set_yticks(range(1, steps + 1))
    axes.set(xlim=(-0.6, len(words) + 2.2), ylim=(steps + 0.6, 0.4), xlabel="the text", ylabel="draft step")
    return figure


def progress(
    steps: Sequence[int], acceptance: Sequence[Sequence[float]], change: int | None = None, title: str = ""
) -> Figure:
    """Acceptance over the optimizer's steps, a line with its own marker for each draft.  change: where the loss changes."""
    figure, (axes,) = style.panels(height=3)
    looks = (style.TARGET, style.WRONG, style.ACCEPTED, style.DRAFTER)
    for place, (mark, look) in enumerate(zip(MARKS, looks, strict=True)):
        values = [shares[place] for shares in acceptance]
        axes.plot(steps, values, marker=mark, markersize=5, label=f"draft {place + 1}", **look.line())
    if change is not None:
        axes.axvline(change, color="black", linestyle="--", linewidth=1)
        axes.text(change, axes.get_ylim()[0], " four steps from here", fontsize=9, va="bottom")
    axes.set(xlabel="steps of the optimizer", ylabel="probability of acceptance", title=title)
    figure.legend(fontsize=9, loc="outside upper center", ncols=4)
    return figure


def beside(before: Sequence[float], after: Sequence[float], names: tuple[str, str]) -> Figure:
    """Acceptance of each draft by two drafters, as bars side by side."""
    figure, (axes,) = style.panels(height=2.6)
    for shift, values, name, look in zip(
        (-0.2, 0.2), (before, after), names, (style.NEUTRAL, style.ACCEPTED), strict=True
    ):
        hatch = look.patch() | {"hatch": "//" if shift < 0 else ""}
        axes.bar([place + shift for place in range(1, 5)], values, width=0.38, label=name, **hatch)
    axes.set(xlabel="draft", ylabel="probability of acceptance", xticks=range(1, 5))
    figure.legend(fontsize=9, loc="outside upper center", ncols=2)
    return figure
