"""Is the diagnosis any good?  Every mutant's tensors are diagnosed, without a word about whose they are.

`python -m decoding.oracle.confusion` prints the table and `tutorials/oracle_mutants.md` holds it.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from decoding.oracle.diagnose import Diagnosis, Place, diagnose, error, evidence, reference, under
from decoding.oracle.mutants import MUTANTS
from decoding.oracle.mutants.mutant import Mutant, Variant
from decoding.oracle.tolerance import tolerance_of

# Together these two have every branch: shared K/V, per-layer inputs, double width and a clustered head in the one, experts,
# K = V and a dense head in the other.
WITNESSES = ("E2B", "26B-A4B")
# What every bug is looked for in; and what only those are that do not show there.
STAGES = ("rope", "law", "accept", "emit", "forward", "draft", "chunked")
DEAR_STAGES = ("share", "verify", "rollback", "rounds")


class Outcome(NamedTuple):
    mutant: Mutant
    diagnosis: Diagnosis

    @property
    def named(self) -> tuple[str, ...]:
        return tuple(mutant.name for mutant, _ in self.diagnosis.matches)

    @property
    def verdict(self) -> str:
        """`named`: it and no other; `among n`: no tensor tells it from n - 1 others; `unseen`, `missed`, `mistaken`."""
        if self.mutant.name in self.named:
            return "named" if len(self.named) == 1 else f"among {len(self.named)}"
        if not self.diagnosis.reference.off:
            return "unseen"
        return "mistaken" if self.named else "missed"


def confusion(mutants: Iterable[Mutant] = tuple(MUTANTS.values())) -> list[Outcome]:
    return [Outcome(mutant, diagnose(dump_of(mutant))) for mutant in mutants]


def dump_of(variant: Variant) -> dict[str, np.ndarray]:
    """What an engine with this bug would hand in: its tensors with a tenth of the tolerance as noise."""
    rng = np.random.default_rng(0)
    return {
        name: noisy(name, value, rng) for place in places_of(variant) for name, value in under(variant, *place).items()
    }


@functools.cache
def places_of(variant: Variant) -> tuple[Place, ...]:
    """The stages to look at: the cheap ones, and if a variant does not show there, the others one by one until it does."""
    places = [(case, stage) for case in WITNESSES for stage in STAGES]
    for stage in DEAR_STAGES:
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


def killed_at(mutant: Mutant) -> dict[str, tuple[str, float]]:
    """By case: the first tensor in which a mutant differs from the reference, and by how many tolerances."""
    out = {}
    for case, stage in places_of(mutant):
        right, wrong = reference(case, stage).tensors, under(mutant, case, stage)
        off = {name: error(name, wrong[name], right[name]) for name in right if name in wrong}
        first = next((name for name, units in off.items() if units > 1), None)
        if first and case not in out:
            out[case] = first, off[first]
    return out
