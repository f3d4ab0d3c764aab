"""How far repeated measurements lie apart."""

import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> list[float]:
    """The 25 % and the 75 % mark; of one value, twice that one."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
