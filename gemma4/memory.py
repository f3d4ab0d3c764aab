"""Whether something fits into memory, asked before it is made: one clear error in place of a killed process."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

MEMINFO = Path("/proc/meminfo")


class NotEnoughMemory(ValueError):
    """What was asked for takes more memory than is free; the message says how much of each."""


def check_memory(what: str, arrays: Iterable[Any], advice: str) -> None:
    """Errors: NotEnoughMemory if arrays of these shapes and dtypes take more than one device, or this machine, has free.

    An estimate of the least: what is computed with the arrays comes on top.  Where the free memory is not known, all fits.
    """
    needed, free = sum(array.size * array.dtype.itemsize for array in arrays), free_memory()
    if free is not None and needed > free:
        raise NotEnoughMemory(
            f"{what}: takes {needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free; {advice}"
        )


def free_memory() -> int | None:
    """Bytes that the first device has free; of a CPU, the machine."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        return None
