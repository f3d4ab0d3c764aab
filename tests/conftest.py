"""For all tests: full float32 products on every platform (the default is less on TPU and GPU), near-ties counted."""

from collections.abc import Iterator

import jax
import pytest

from tests.near_ties import TIE, NearTies

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure(config):
    """Compiled code is kept in pytest's own cache: most of a test's time is compilation, and a second run skips it.

    JAX looks it up by the program, the compiler's version and its options.  `pytest --cache-clear` empties it.  (No bound on
    its size is set: JAX would then read the whole directory each time that it stores something.)
    """
    if not hasattr(config, "cache"):  # `-p no:cacheprovider`
        return
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """Compile with few optimisations, in half the time: for tests of logic, which run what they compile a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
