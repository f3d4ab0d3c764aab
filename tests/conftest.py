"""For all tests: full float32 products on every platform (the default is less on TPU and GPU), compilation in a third of its
time, near-ties counted.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.near_ties import TIE, NearTies

jax.config.update("jax_default_matmul_precision", "highest")

# Where the known bugs are withheld, as from students, what is about them is not collected.
NEED_KNOWN_BUGS = (
    *(f"decoding/oracle/test_{name}.py" for name in ("compare", "diagnose", "mutants", "live")),
    *("decoding/course", "decoding/trace/test_page.py", "properties/test_known_bugs.py"),
)
if not (Path(__file__).parents[1] / "decoding" / "oracle" / "known_bugs" / "__init__.py").exists():
    collect_ignore = list(NEED_KNOWN_BUGS)

# An older generator of code, in one piece.  XLA aborts at a flag that it does not know; jax 0.7 to 0.11.0 know these.
QUICK_CODE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_addoption(parser):
    parser.addoption(
        "--optimized", action="store_true", help="compile as users do, with all optimizations, which is slower"
    )


def pytest_configure(config):
    """Most of a test's time is compilation, and what is compiled runs a few times: few optimizations, and all is kept.

    Code is kept in pytest's own cache, where JAX looks it up by the program, the compiler's version and its options.
    `pytest --cache-clear` empties it.  (No bound on its size is set: JAX would then read the whole directory each time that it
    stores something.)
    """
    if not config.getoption("optimized"):
        jax.config.update("jax_disable_most_optimizations", True)
        if jax.__version_info__ < (0, 11):
            os.environ["XLA_FLAGS"] = f"{QUICK_CODE} {os.environ.get('XLA_FLAGS', '')}"
    if not hasattr(config, "cache"):  # `-p no:cacheprovider`
        return
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def near_ties(record_property) -> Iterator[NearTies]:
    """Compares greedy texts; what it excused is printed at the end of the run."""
    counts = NearTies()
    yield counts
    record_property("near_ties", (counts.texts, counts.excused))


def pytest_collection_modifyitems(items):
    """`-m "not parity"` runs all that needs no torch."""
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker("parity")


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    counts = [
        value
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, value in report.user_properties
        if name == "near_ties"
    ]
    if counts:
        texts, excused = map(sum, zip(*counts, strict=True))
        terminalreporter.write_line(f"greedy texts compared: {texts}; excused as near-ties (within {TIE:g}): {excused}")
