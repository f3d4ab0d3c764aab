"""Compiled by a TPU's own compiler, which needs no TPU.  TPU_LIBRARY_PATH is its path; without it nothing here runs.

    pip install --no-deps --target DIR libtpu==0.0.42   # the version that jax[tpu] asks for
    TPU_LIBRARY_PATH=DIR/libtpu/libtpu.so python -m pytest --optimized tests/tpu

(Installed beside jax, it would make JAX look for a TPU.)
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import pytest

collect_ignore_glob = [] if os.environ.get("TPU_LIBRARY_PATH") else ["test_*.py"]


@pytest.fixture(scope="session")
def tpus() -> Callable[[str], Sequence[Any]]:
    """The four devices of a v5p or a v6e, to compile for."""
    from jax.experimental import topologies

    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
    shapes = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
    return functools.cache(
        lambda name: topologies.get_topology_desc(platform="tpu", topology_name=shapes[name]).devices
    )


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """Without a device, compiled programs cannot be loaded again."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
