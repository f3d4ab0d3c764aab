"""Is the diagnosis any good?  Every mutant's tensors are diagnosed, without a word about whose they are.

`gemma4-mtp oracle mutants --confusion` prints the result, and `tutorials/oracle_mutants.md` holds it.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from decoding.oracle.diagnose import CHEAP, Diagnosis, Place, Tensors, diagnose, evidence, under
from decoding.oracle.known_bugs import MUTANTS
from decoding.oracle.known_bugs.mutant import Mutant, Variant
from decoding.oracle.tolerance import is_required, tolerance_of

# Together these two have every branch: shared K/V, per-layer inputs, double width and a clustered head in the one, experts,
# K = V and a dense head in the other.
WITNESSES = ("E2B", "26B-A4B")
DEAR_ONES = ("share", "verify", "rollback", "rounds")  # the other dear stages repeat cheap ones


class Outcome(NamedTuple):
    mutant: Mutant
    diagnosis: Diagnosis  # of all its tensors
    from_results: Diagnosis  # of those alone that every engine has: logits, hidden rows, counts, tokens


def confusion(mutants: Iterable[Mutant] = tuple(MUTANTS.values())) -> list[Outcome]:
    return [Outcome(mutant, diagnose(dump_of(mutant)), diagnose(results(dump_of(mutant)))) for mutant in mutants]


def results(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if is_required(name.split("/", 1)[1])}


def dump_of(variant: Variant) -> dict[str, np.ndarray]:
    """What an engine with this bug would hand in: its tensors with a tenth of the tolerance as noise."""
    rng = np.random.default_rng(0)
    return {
        name: noisy(name, value, rng) for place in places_of(variant) for name, value in under(variant, *place).items()
    }


@functools.cache
def places_of(variant: Variant) -> tuple[Place, ...]:
    """The stages to look at: the cheap ones, and if a variant does not show there, the others one by one until it does."""
    places = [(case, stage) for case in WITNESSES for stage in CHEAP]
    for stage in DEAR_ONES:
        if any(evidence(under(variant, *place), place).off for place in places):
            break
        places += [(case, stage) for case in WITNESSES]
    return tuple(places)


def noisy(name: str, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rule, tolerance, _ = tolerance_of(name.split("/", 1)[1], value)
    if rule == "exact":
        return value
    scale = 1.0 if rule == "absolute" else np.abs(value[np.isfinite(value)]).max(initial=0)
    return value + np.float32(rng.uniform(-0.1, 0.1, value.shape) * tolerance * scale)
