"""Whether other programs disturb a measurement: by the load average before it, and by how much its repetitions differ."""

import os
from collections.abc import Iterator
from typing import Any

BUSY = 0.3  # processes that want to run, for each core
VARIED = 1.25  # third quartile over first


def load_average() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy(load: float | None, cores: int) -> str | None:
    """A warning, or None.  To be asked before the first measurement, which is a load itself."""
    if load is None or load <= BUSY * cores:
        return None
    return (
        f"the machine is busy (load average {load:.1f} on {cores} cores): times are too long, and ratios noisy; end other "
        "programs and measure again"
    )


def varied(found: dict[str, Any]) -> str | None:
    """A warning if the repetitions of any ratio in a record of measurements differ much."""
    worst = max((high / low for low, high in _quartiles(found) if low > 0), default=1.0)
    if worst <= VARIED:
        return None
    return (
        f"repeated measurements differ by up to {worst - 1:.0%} between their quartiles; give more --runs, or end other "
        "programs"
    )


def _quartiles(found: Any) -> Iterator[tuple[float, float]]:
    if isinstance(found, dict):
        for name, value in found.items():
            if name.endswith("quartiles"):
                yield value[0], value[1]
            else:
                yield from _quartiles(value)
    elif isinstance(found, list):
        for value in found:
            yield from _quartiles(value)
