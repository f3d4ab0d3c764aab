"""The first cases of `tests/fuzz.py`, a few of each kind; `python -m tests.fuzz --cases 1000` runs more."""

import pytest

from tests import fuzz

CASES = 36


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    keep = fuzz.main.keep_compiled_code
    yield fuzz.begin(tmp_path_factory.mktemp("fuzz"))
    fuzz.main.keep_compiled_code = keep


@pytest.mark.parametrize("number", range(CASES))
def test_a_spoilt_input_is_one_line_or_harmless(place, number):
    _, wrong = fuzz.run_case(place, number)
    assert not wrong
