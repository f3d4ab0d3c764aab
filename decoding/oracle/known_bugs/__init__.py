"""Known bugs of other engines as mutants of the reference, and correct variants that must not be taken for bugs.

Reading order: mutant, then any file about a stage or a part (rope, norms, ring, acceptance, ..), equivalent, catalogue.
Mutants quote the lines of the reference that they change.  Of the oracle, only `diagnose`, `confusion` and `known_bugs_page`
import them, so that this folder can be withheld where the reference's stages are exercises.
"""

from decoding.oracle.known_bugs import (
    acceptance,
    clustered,
    drafter_input,
    ending,
    equivalent,
    hidden,
    kv_sharing,
    moe,
    norms,
    per_layer,
    ring,
    rope,
    rows,
    stale,
    window,
    wiring,
)
from decoding.oracle.known_bugs.catalogue import CLASSES, INEXPRESSIBLE, NOT_IN_TEXT, Inexpressible
from decoding.oracle.known_bugs.mutant import Equivalent, Mutant, Seen, Variant

_FILES = (
    per_layer, rope, norms, kv_sharing, ring, window, moe, rows, hidden, wiring, drafter_input, clustered, stale,
    acceptance, ending,
)  # fmt: skip

MUTANTS: dict[str, Mutant] = {mutant.name: mutant for file in _FILES for mutant in file.MUTANTS}
EQUIVALENT: dict[str, Equivalent] = {variant.name: variant for variant in equivalent.EQUIVALENT}

__all__ = [
    "CLASSES", "EQUIVALENT", "INEXPRESSIBLE", "MUTANTS", "NOT_IN_TEXT", "Equivalent", "Inexpressible", "Mutant", "Seen",
    "Variant",
]  # fmt: skip
