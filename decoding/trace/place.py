"""One place of the text, as a trace has it: the target's distribution p, the drafter's q, and what draws from them need.

A vocabulary is too large for a page.  A place lists the likeliest tokens of either model and sums up all others, so that
every bar on the page adds up to what it should.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

LISTED = 10  # tokens of each distribution
DIGITS = 6  # of a listed number


def place(
    p: Float[np.ndarray, " v"], q: Float[np.ndarray, " v"], weight: float = 1.0, *, also: Iterable[int] = ()
) -> dict[str, Any]:
    """The largest probabilities of p and of q, and the sums over the tokens that are not listed.

    q:      zero everywhere where nothing was proposed.
    weight: of the run that ends here, by block (`decoding.stages.accept_block`); the residual is max(weight p - q, 0).
    also:   ids to list whatever their probability.
    """
    residual = residual_of(p, q, weight)
    ids = np.unique(np.concatenate([_largest(p), _largest(q), np.fromiter(also, int)]))
    others = np.ones(len(p), bool)
    others[ids] = False
    p_before, residual_before = _sum_before(p), _sum_before(residual)
    columns = p[ids], q[ids], residual[ids], residual_before[ids], p_before[ids]
    wide_p, wide_q = p.astype(np.float64), q.astype(np.float64)
    kept = np.minimum(wide_p, wide_q)
    swapped = wide_q * np.minimum(1, wide_q / np.maximum(wide_p, np.finfo(np.float64).tiny))
    sums = {"p": wide_p, "q": wide_q, "min": kept, "residual": residual, "swapped": swapped}
    return {
        "tokens": [[token, *map(_short, row)] for token, *row in zip(ids.tolist(), *columns, strict=True)],
        "rest": {name: _short(values[others].sum(dtype=np.float64)) for name, values in sums.items()},
        "residual_sum": _short(residual.sum(dtype=np.float64)),
    }


def residual_of(p: Float[np.ndarray, " v"], q: Float[np.ndarray, " v"], weight: float = 1.0) -> Float[np.ndarray, " v"]:
    """As `decoding.stages.accept.residual`, of p times the run's weight."""
    rest = np.maximum(np.float32(weight) * p - q, 0)
    return rest if rest.any() else np.float32(weight) * p


def draw(weights: Float[np.ndarray, " v"], token: int, uniform: float | None) -> dict[str, Any]:
    """How `token` was drawn: the running sum of the weights, in the order of ids, before and after it.

    uniform: the number in [0, 1) that decided; None where the choice was greedy.
    """
    running = weights.astype(np.float64).cumsum()
    after = running[token]
    return {
        "token": token,
        "u": None if uniform is None else exact(uniform),
        "before": exact(after - weights[token]),
        "after": exact(after),
        "sum": exact(running[-1]),
    }


def exact(value: Any) -> float:
    """The shortest decimal number that float32 reads as `value`."""
    return float(str(np.float32(value)))


def _short(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _largest(probs: Float[np.ndarray, " v"]) -> np.ndarray:
    ids = np.argsort(-probs, kind="stable")[:LISTED]
    return ids[probs[ids] > 0]


def _sum_before(weights: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    return weights.astype(np.float64).cumsum() - weights
