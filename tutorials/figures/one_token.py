"""The pictures of tutorial 02: the residual stream, RoPE, attention, and the next token."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from figures import style
from figures.style import ACCEPTED, DRAFTER, NEUTRAL, TARGET


def residual_stream(stream: np.ndarray, added: np.ndarray, is_sliding: Sequence[bool]) -> Figure:
    """The size of one token's vector through the layers, and of the three updates that each layer adds.

    stream: [layers + 1], before the first layer and after each.
    added:  [layers, 3], by attention, MLP and per-layer input.
    """
    figure, (axis,) = style.panels(height=3.0)
    layers = np.arange(len(added))
    updates = (("attention adds", TARGET), ("MLP adds", DRAFTER), ("per-layer input adds", ACCEPTED))
    for i, (name, look) in enumerate(updates):
        axis.bar(layers + 0.25 * (i - 1), added[:, i], width=0.23, **look.patch(), label=name)
    axis.plot(np.arange(-1, len(added)) + 0.5, stream, color="black", label="the stream between layers", marker="D")
    axis.set_xticks(layers, [f"{i}\n{'sliding' if s else 'full'}" for i, s in enumerate(is_sliding)])
    axis.set_xlabel("layer")
    axis.set_ylabel("root mean square")
    axis.set_ylim(0, 1.3 * max(stream.max(), added.max()))
    axis.legend(ncols=2, loc="upper center", fontsize=9)
    return figure


def rope_hands(frequencies: dict[str, np.ndarray], positions: Sequence[int], shown: int = 8) -> Figure:
    """A clock for each pair and position: the hand is where RoPE turns the pair's first axis.

    frequencies: of each kind of layer, in radians per position.
    shown:       how many of the pairs, evenly spread.
    """
    figure, axes = style.panels(columns=len(frequencies), height=0.5 * len(positions) + 0.9, sharey=True)
    for axis, (kind, each) in zip(axes, frequencies.items(), strict=True):
        pairs = np.linspace(0, len(each) - 1, shown).astype(int)
        for column, pair in enumerate(pairs):
            look = TARGET if each[pair] else NEUTRAL
            for row, position in enumerate(positions):
                angle = position * each[pair]
                axis.add_patch(Circle((column, row), 0.42, facecolor=look.fill, edgecolor=look.edge))
                hand = [column, column + 0.4 * np.cos(angle)], [row, row - 0.4 * np.sin(angle)]
                axis.plot(*hand, color="black", linewidth=1.8, linestyle="-" if each[pair] else ":")
        axis.set_xlim(-0.6, shown - 0.4)
        axis.set_ylim(len(positions) - 0.4, -0.6)
        axis.set_aspect("equal")
        axis.set_xticks(range(shown), [str(pair) for pair in pairs])
        axis.set_yticks(range(len(positions)), [str(position) for position in positions])
        axis.set_xlabel("pair")
        axis.set_title(kind.replace("_", " "))
    axes[0].set_ylabel("position")
    return figure


def attention_maps(weights: dict[str, np.ndarray], window: int) -> Figure:
    """Attention weights of some layers, each [queries, keys]; a dashed line where a window would end."""
    figure, axes = style.panels(columns=len(weights), height=3.6)
    for axis, (title, each) in zip(axes, weights.items(), strict=True):
        image = axis.imshow(np.sqrt(each), cmap="Greys", vmin=0, vmax=0.7, interpolation="nearest")
        axis.plot([-0.5, len(each) - window - 0.5], [window - 0.5, len(each) - 0.5], "--", color=TARGET.edge)
        axis.set_title(title)
        axis.set_xlabel("key at position")
        axis.set_ylabel("query at position")
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("attention weight")
    ticks = np.array([0, 0.02, 0.1, 0.25, 0.49])
    bar.set_ticks(np.sqrt(ticks), labels=[*(f"{tick:g}" for tick in ticks[:-1]), f"{ticks[-1]:g} +"])
    return figure


def next_tokens(words: Sequence[str], probs: np.ndarray) -> Figure:
    """The likeliest next tokens and their probabilities."""
    figure, (axis,) = style.panels(height=2.4)
    bars = axis.bar(range(len(words)), probs, **TARGET.patch())
    axis.bar_label(bars, [f"{prob:.2f}" for prob in probs], fontsize=9)
    axis.set_xticks(range(len(words)), [repr(word) for word in words])
    axis.set_xlabel("next token")
    axis.set_ylabel("probability")
    axis.margins(y=0.15)
    return figure
