"""How good the diagnosis is: the tensors of every mutant are diagnosed without its name.

`gemma4-mtp oracle mutants --confusion` prints the result, and `tutorials/reference/known_bugs.md` holds it.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from decoding.oracle.diagnose import CHEAP, CaseStage, Diagnosis, Tensors, diagnose, evidence, under
from decoding.oracle.known_bugs import MUTANTS
from decoding.oracle.known_bugs.mutant import Mutant, Variant
from decoding.oracle.tolerance import is_required, tolerance_of

# Together these two have every branch: E2B has shared K/V, per-layer inputs, double width and a clustered head; 26B-A4B has
# experts, K = V and a dense head.
WITNESSES = ("E2B", "26B-A4B")
EXPENSIVE_ONES = ("share", "verify", "rollback", "rounds")  # the other expensive stages repeat cheap ones


class Outcome(NamedTuple):
    mutant: Mutant
    diagnosis: Diagnosis  # of all its tensors
    from_results: Diagnosis  # of the results that every engine has: logits, hidden states, counts, tokens


def confusion(mutants: Iterable[Mutant] = tuple(MUTANTS.values())) -> list[Outcome]:
    return [Outcome(mutant, diagnose(dump_of(mutant)), diagnose(results(dump_of(mutant)))) for mutant in mutants]


def results(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if is_required(name.split("/", 1)[1])}


def dump_of(variant: Variant) -> dict[str, np.ndarray]:
    """The tensors of an engine with this bug, with noise of a tenth of the tolerance."""
    rng = np.random.default_rng(0)
    return {
        name: noisy(name, value, rng) for stage in stages_of(variant) for name, value in under(variant, *stage).items()
    }


@functools.cache
def stages_of(variant: Variant) -> tuple[CaseStage, ...]:
    """The stages to diagnose: the cheap ones, and if a variant does not show there, more of them, until it does."""
    stages = [(case, stage) for case in WITNESSES for stage in CHEAP]
    for stage in EXPENSIVE_ONES:
        if any(evidence(under(variant, *it), it).off for it in stages):
            break
        stages += [(case, stage) for case in WITNESSES]
    return tuple(stages)


def noisy(name: str, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rule, tolerance, _ = tolerance_of(name.split("/", 1)[1], value)
    if rule == "exact":
        return value
    scale = 1.0 if rule == "absolute" else np.abs(value[np.isfinite(value)]).max(initial=0)
    return value + np.float32(rng.uniform(-0.1, 0.1, value.shape) * tolerance * scale)
