"""Plots: what is on their axes."""

import matplotlib
import pytest

from decoding.bench.plot import _draw_speed_up

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of what draws)


@pytest.mark.parametrize("lengths", [[4], [1, 2], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_draft_lengths_are_whole_numbers(lengths):
    loops = [{"draft_length": length, "speed_up": 1.5, "predicted": 1.4} for length in lengths]
    figure, axes = plt.subplots()
    _draw_speed_up({"batches": [{"batch": 1, "loops": loops}], "subject": {"name": "a pair"}}, axes)
    figure.canvas.draw()
    ticks = axes.get_xticks()
    plt.close(figure)
    assert len(ticks) and all(tick == round(tick) for tick in ticks), ticks
