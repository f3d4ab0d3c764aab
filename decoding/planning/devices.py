"""What devices can do, from their makers' data sheets; the best case, which no program reaches.

Rates are for dense products in bfloat16 with sums in float32, and for float32 without shorter factors.  Makers do not publish
what it costs to start one operation; the figures here are assumptions, and `--launch` replaces them.
"""

from typing import NamedTuple

import jax.numpy as jnp

from decoding.bench.machine import measure_machine


class Device(NamedTuple):
    """bytes, bytes a second, operations a second and seconds; a link is what one device sends to the others."""

    name: str
    backend: str  # cpu, gpu or tpu: which twins and forms run there
    memory: float
    bandwidth: float
    flops: float  # bfloat16 and float16
    float32_flops: float
    launch: float  # from one operation to the next, where each waits for the one before it
    link_bandwidth: float = 0.0
    link_latency: float = 0.0  # of one sum over all devices

    def flops_for(self, dtype: str) -> float:
        return self.float32_flops if dtype == "float32" else self.flops


# Assumptions, not data-sheet figures: kernels of one recorded graph on a GPU, operations of one program on a TPU, and a sum
# over devices of few bytes.
GPU_LAUNCH, TPU_LAUNCH, APPLE_LAUNCH = 2e-6, 0.5e-6, 4e-6
GPU_SUM, TPU_SUM = 10e-6, 5e-6
GB, TB, TERA = 1e9, 1e12, 1e12

DEVICES = {
    device.name: device
    for device in (
        # NVIDIA's data sheets; dense rates, and NVLink in one direction.
        Device("a100", "gpu", 80 * GB, 2.039 * TB, 312 * TERA, 19.5 * TERA, GPU_LAUNCH, 300 * GB, GPU_SUM),
        Device("h100", "gpu", 80 * GB, 3.35 * TB, 989 * TERA, 67 * TERA, GPU_LAUNCH, 450 * GB, GPU_SUM),
        Device("h200", "gpu", 141 * GB, 4.8 * TB, 989 * TERA, 67 * TERA, GPU_LAUNCH, 450 * GB, GPU_SUM),
        Device("b200", "gpu", 180 * GB, 7.7 * TB, 2250 * TERA, 75 * TERA, GPU_LAUNCH, 900 * GB, GPU_SUM),
        Device("b300", "gpu", 288 * GB, 8.0 * TB, 2250 * TERA, 75 * TERA, GPU_LAUNCH, 900 * GB, GPU_SUM),
        Device("rtx-4090", "gpu", 24 * GB, 1.008 * TB, 165 * TERA, 82.6 * TERA, GPU_LAUNCH, 32 * GB, 30e-6),
        Device("rtx-5090", "gpu", 32 * GB, 1.792 * TB, 209 * TERA, 104.8 * TERA, GPU_LAUNCH, 64 * GB, 30e-6),
        Device("rtx-pro-6000", "gpu", 96 * GB, 1.792 * TB, 252 * TERA, 126 * TERA, GPU_LAUNCH, 64 * GB, 30e-6),
        Device("gb10", "gpu", 128 * GB, 0.273 * TB, 125 * TERA, 31 * TERA, GPU_LAUNCH, 25 * GB, 30e-6),
        # Google Cloud's TPU pages; float32 takes six products of bfloat16.
        Device("tpu-v5p", "tpu", 95 * GB, 2.765 * TB, 459 * TERA, 76 * TERA, TPU_LAUNCH, 600 * GB, TPU_SUM),
        Device("tpu-v6e", "tpu", 32 * GB, 1.638 * TB, 918 * TERA, 153 * TERA, TPU_LAUNCH, 400 * GB, TPU_SUM),
        # Apple states memory and bandwidth; rates are cores x 256 operations x clock (M5: four times that for matrices).
        Device("m4-max", "gpu", 128 * GB, 0.546 * TB, 16 * TERA, 16 * TERA, APPLE_LAUNCH),
        Device("m5-max", "gpu", 128 * GB, 0.614 * TB, 65 * TERA, 16 * TERA, APPLE_LAUNCH),
    )
}
CPU = "cpu"


def this_cpu(dtype: str, memory: float) -> Device:
    """This machine, as measured (a second)."""
    machine = measure_machine(jnp.dtype(dtype))
    rates = machine.flops_per_second, machine.flops_per_second
    return Device(machine.device, "cpu", memory, machine.bytes_per_second, *rates, 1e-6)
