"""A clock for tests of timers."""

from types import SimpleNamespace


def lasting(*laps: float) -> SimpleNamespace:
    """In place of the module `time`: the laps take so many seconds."""
    ticks = iter([tick for seconds in laps for tick in (0.0, seconds)])
    return SimpleNamespace(perf_counter=lambda: next(ticks))
