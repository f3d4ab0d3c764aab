"""How far a tensor may be off, by which rule, and why.

One unit of error is the tolerance: an error of 1 unit or less agrees.  For whole numbers the units count the wrong elements:
0 agrees.  Rules:

    exact      whole numbers: equal or not
    relative   the largest difference, over the largest expected magnitude of the tensor
    absolute   the largest difference
    clustered  relative; where -inf is expected, -inf or anything below the row's lowest expected logit agrees
"""

import re
from typing import NamedTuple

import numpy as np

FLOAT32 = 1e-4


RULES = ("exact", "absolute", "relative", "clustered")


class Tolerance(NamedTuple):
    rule: str
    value: float
    reason: str  # a key of REASONS

    @property
    def units_allowed(self) -> int:
        return 0 if self.rule == "exact" else 1


REASONS = {
    "whole numbers": "token ids, counts and indices: equal or not; transformers 5.22.2 gives the same in float32",
    "float32 sums": "float32 additions in another order: transformers 5.22.2 comes within a third of this",
    "float32 angles": "position times frequency in float32 is off by up to half a unit in the last place of the angle",
    "probabilities": "a softmax in float32, and a top-k/top-p mask whose edge no rounding moves",
    "one-hot distribution": "1 at the token, 0 elsewhere: exact in any arithmetic",
    "unscored tokens": (
        "as float32 sums; a clustered head leaves most tokens unscored, and engines fill these with -inf or a low value"
    ),
}


def tolerance_of(name: str, value: np.ndarray) -> Tolerance:
    """The tolerance of the tensor `stage/what`."""
    if not np.issubdtype(value.dtype, np.floating):
        return Tolerance("exact", 0.0, "whole numbers")
    if name.endswith("/told"):
        return Tolerance("absolute", 1e-6, "one-hot distribution")
    if name.startswith("law/"):
        return Tolerance("absolute", 1e-5, "probabilities")
    if re.fullmatch(r"rope/.*\.far", name):
        return Tolerance("absolute", 2e-2, "float32 angles")
    if not np.isfinite(value).all():
        return Tolerance("clustered", FLOAT32, "unscored tokens")
    return Tolerance("relative", FLOAT32, "float32 sums")


# The results of each stage, required if any tensor of the stage is given.  The other tensors show where a mistake is.
RESULTS = {
    "load": ".*logits",
    "rope": ".*",
    "forward": "hidden|logits",
    "prefill": "hidden|logits",
    "chunked": "hidden|logits",
    "stepwise": "hidden|logits",
    "share": ".*",
    "draft": r"step\d+/(logits|post_projection)|block/tokens",
    "verify": ".*",
    "law": r"(?!.*\.(drawn|told)$).*",
    "accept": r".*\.num_accepted|greedy\.next_token",  # how a random number selects a token is up to the engine
    "accept_block": "(?!)",  # nothing
    "emit": ".*",
    "rollback": ".*",
    "rounds": r"round\d+/(num_emitted|tokens|length)",
}


def is_required(name: str) -> bool:
    stage, what = name.split("/", 1)
    return re.fullmatch(RESULTS[stage], what) is not None
