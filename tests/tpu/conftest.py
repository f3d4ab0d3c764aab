"""Compiled by a TPU's own compiler, which needs no TPU: where TPU_LIBRARY_PATH says where it is, and nowhere else.

    pip install --no-deps --target DIR libtpu==0.0.42   # the version that jax[tpu] asks for
    TPU_LIBRARY_PATH=DIR/libtpu/libtpu.so python -m pytest --optimized tests/tpu

(Installed beside jax, it would be taken for a TPU that is there.)
"""

import os

import jax
import pytest

collect_ignore_glob = [] if os.environ.get("TPU_LIBRARY_PATH") else ["test_*.py"]


@pytest.fixture(scope="session")
def tpus():
    """The four devices of a v5p, to compile for."""
    from jax.experimental import topologies

    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
    return topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices


@pytest.fixture(autouse=True)
def as_on_a_tpu(monkeypatch):
    """The formulas choose their form as there; and what is compiled cannot be kept, for no device is there to load it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
