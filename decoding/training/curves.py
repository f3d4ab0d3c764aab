"""A picture of the training logs.  matplotlib is an extra: without it there is none."""

import importlib.util
import json
from pathlib import Path
from typing import Any

PICTURE = "curves.png"


def draw(log: str, file: Path) -> bool:
    """Losses over steps, and what was measured on held-out text.  False, and no file, without matplotlib.

    log: JSON lines as `gemma4.training.fit` writes them, of several stages.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    stages: dict[str, list[dict[str, Any]]] = {}
    for entry in map(json.loads, log.splitlines()):
        stages.setdefault(entry["run"], []).append(entry)
    figure, rows = plt.subplots(2, len(stages), figsize=(4 * len(stages), 6), layout="constrained", squeeze=False)
    for (name, entries), loss, held_out in zip(stages.items(), *rows, strict=True):
        steps = [entry["step"] for entry in entries]
        loss.plot(steps, [entry["loss"] for entry in entries], "o-")
        loss.set(title=name, ylabel="loss (nats)")
        if "held_out_bits_per_byte" in entries[0]:
            held_out.plot(steps, [entry["held_out_bits_per_byte"] for entry in entries], "o-")
            held_out.set(ylabel="held-out bits per byte")
        elif "held_out_acceptance" in entries[0]:
            shares = zip(*(entry["held_out_acceptance"] for entry in entries), strict=True)
            for position, share in enumerate(shares, start=1):
                held_out.plot(steps, share, "o-", label=f"draft {position}")
            held_out.set(ylabel="accepted at temperature 1", ylim=(0, 1))
            held_out.legend()
        for axes in (loss, held_out):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scratch = file.with_name(f".{file.name}.tmp.png")
    try:
        figure.savefig(scratch, dpi=120)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
        plt.close(figure)
    return True
