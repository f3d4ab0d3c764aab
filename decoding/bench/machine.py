"""What this machine can do: how fast it copies and multiplies at best, as measured, and how much memory was in use."""

import os
import platform
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemma4.fast import this_backend

COPIED_BYTES = 2**28  # far more than a processor's cache holds
SIDE = {"cpu": 2048}  # of the square matrices that are multiplied; 8192 elsewhere
LAPS = 7


class Machine(NamedTuple):
    device: str
    bytes_per_second: float  # read and written together, for an array that fits no cache
    flops_per_second: float  # of a large matrix product in the model's dtype


def measure_machine(dtype: jnp.dtype) -> Machine:
    """The best of a few laps of a copy and of a product."""
    backend = this_backend()
    arrays = [jnp.zeros(COPIED_BYTES // 4, jnp.float32)]
    # In place: on CPU the first touch of new memory takes longer than the copy itself.
    increment = jax.jit(lambda array: array + 1, donate_argnums=0)

    def copy() -> jax.Array:
        arrays.append(increment(arrays.pop()))
        return arrays[0]

    side = SIDE.get(backend, 8192)
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda matrix: matrix @ matrix)
    return Machine(
        device=device_name(),
        bytes_per_second=2 * COPIED_BYTES / _best(copy),
        flops_per_second=2 * side**3 / _best(lambda: product(matrix)),
    )


def _best(run: Callable[[], jax.Array]) -> float:
    seconds = []
    for _ in range(LAPS + 1):  # the first one compiles, and is never the best
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def device_name() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{_processor()}, {num_cores()} cores"


def num_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_bytes() -> int | None:
    """The most memory in use so far: on the device where it tells, else in this process, compiler included.

    None where neither is known, as on Windows.
    """
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
