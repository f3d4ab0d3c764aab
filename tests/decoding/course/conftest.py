"""One key for all tests of the grader: that of the ring, the assignment which computes soonest."""

import pytest

from decoding.course.catalogue import assignment
from decoding.course.key import Key
from decoding.course.make_key import make_key


@pytest.fixture(scope="session")
def ring_key() -> Key:
    return make_key(assignment("03"))
