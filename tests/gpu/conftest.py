"""Compiled by XLA for NVIDIA GPUs, which needs no GPU.  GPU_COMPILER_PATH is a folder with jax's CUDA plugin; without it
nothing here runs.

    pip install --no-deps --target DIR jax-cuda12-pjrt==X jax-cuda12-plugin==X nvidia-cuda-nvcc-cu12   # X: jax's own version
    GPU_COMPILER_PATH=DIR JAX_PLATFORMS=cpu python -m pytest --optimized tests/gpu -m ''

(Installed beside jax, it would make JAX look for a GPU.)  Kernels are chosen by rules, since there is no GPU to time them on.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import pytest

collect_ignore_glob = [] if os.environ.get("GPU_COMPILER_PATH") else ["test_*.py"]

# What XLA asks a GPU about itself, for two of them: data sheets, and NVIDIA's tables of compute capabilities 9.0 and 8.0.
CARDS = {
    "h100": dict(
        name="NVIDIA H100 80GB HBM3", cores=132, capability=(9, 0), bandwidth=3_352_320_000_000, l2=52_428_800,
        shared_core=233_472, shared_block=232_448, clock=1.98, memory=84_942_979_072,
    ),
    "a100": dict(
        name="NVIDIA A100-SXM4-80GB", cores=108, capability=(8, 0), bandwidth=2_039_000_000_000, l2=41_943_040,
        shared_core=167_936, shared_block=166_912, clock=1.41, memory=84_942_979_072,
    ),
}  # fmt: skip


def target_config(card: dict[str, Any]) -> str:
    major, minor = card["capability"]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card["shared_core"]}
  shared_memory_per_block_optin: {card["shared_block"]}
  threads_per_core_limit: 2048
  core_count: {card["cores"]}
  fpus_per_core: {128 if major == 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {card["bandwidth"]}
  l2_cache_size: {card["l2"]}
  clock_rate_ghz: {card["clock"]}
  device_memory_size: {card["memory"]}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{card["name"]}"
"""


@pytest.fixture(scope="session")
def gpus() -> Callable[[str, int], Sequence[Any]]:
    """So many GPUs of a card, to compile for."""
    from jax.experimental import topologies

    sys.path.append(os.environ["GPU_COMPILER_PATH"])

    def devices(card: str, count: int) -> Sequence[Any]:
        shape = f"1x1x{count}"
        config = target_config(CARDS[card])
        name = f"{card}:{shape}"
        return topologies.get_topology_desc(
            platform="cuda", topology_name=name, topology=shape, target_config=config
        ).devices

    return devices


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """Without a device, compiled programs cannot be loaded again."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
