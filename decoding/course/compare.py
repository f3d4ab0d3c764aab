"""Whether two results are the same numbers, and where they first differ, in words."""

from collections.abc import Sequence

import numpy as np

TOLERANCE = 2e-5  # of the largest expected value: room for another order of operations in float32
KINDS = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def kind_of(array: np.ndarray) -> str:
    return KINDS.get(array.dtype.kind, str(array.dtype))


def is_off(got: np.ndarray, expected: np.ndarray, meaning: np.ndarray | None = None) -> np.ndarray:
    """Which elements differ.  The shapes must be equal.  Whole numbers and truth values must be equal, floats nearly."""
    if expected.dtype.kind != "f":
        off = got != expected
    else:
        finite = np.isfinite(expected)
        room = TOLERANCE * max(1.0, float(np.abs(expected[finite]).max(initial=0)))
        with np.errstate(invalid="ignore"):
            near = np.abs(got - expected) <= room
        both_nan = np.isnan(got) & np.isnan(expected)
        off = ~(np.where(finite, near, got == expected) | both_nan)
    return off if meaning is None else off & meaning


def same(
    got: Sequence[np.ndarray], expected: Sequence[np.ndarray], meaning: Sequence[np.ndarray] | None = None
) -> bool:
    """Whether all results of a call are right, shapes and kinds of numbers included."""
    masks = meaning or [None] * len(expected)
    return all(
        not wrong_form(one, other) and not is_off(one, other, mask).any()
        for one, other, mask in zip(got, expected, masks, strict=True)
    )


def normalised(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Weights divided by their sum over the last axis, where that is possible."""

    def one(weights: np.ndarray) -> np.ndarray:
        if weights.dtype.kind not in "iuf" or not weights.ndim:
            return weights
        total = weights.sum(axis=-1, keepdims=True, dtype=np.float64)
        with np.errstate(all="ignore"):
            return np.where(total > 0, weights / np.where(total > 0, total, 1), weights).astype(np.float32)

    return list(map(one, outputs))


def wrong_form(got: np.ndarray, expected: np.ndarray) -> str | None:
    """What is wrong with the shape, or with the kind of numbers."""
    if got.shape != expected.shape:
        return f"has shape {_shape(got)}; expected {_shape(expected)}"
    if kind_of(got) != kind_of(expected) and not (expected.dtype.kind == "f" and got.dtype.kind in "iu"):
        return f"has {kind_of(got)} ({got.dtype}); expected {kind_of(expected)}"
    return None


def first_difference(
    names: Sequence[str],
    got: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    meaning: Sequence[np.ndarray] | None = None,
    *,
    show_expected: bool,
) -> str:
    """`num_accepted is 3 at batch row 2, expected 1`; without the expected value: `is too large`."""
    masks = meaning or [None] * len(expected)
    for name, one, other, mask in zip(names, got, expected, masks, strict=True):
        if form := wrong_form(one, other):
            return f"{name} {form}"
        off = is_off(one, other, mask)
        if off.any():
            where = tuple(int(i) for i in np.argwhere(off)[0])
            have, want = one[where].item(), other[where].item()
            told = f", expected {_number(want)}" if show_expected else f", which is {_direction(have, want)}"
            count = f" ({off.sum()} of {off.size} values are off)" if off.size > 1 else ""
            return f"{name}{_index(where)} is {_number(have)}{told}{count}"
    return "it is right"


def _shape(array: np.ndarray) -> str:
    return str(tuple(array.shape))


def _index(where: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, where))}]" if where else ""


def _number(value: float | int | bool) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _direction(have: float | int | bool, want: float | int | bool) -> str:
    if have != have:
        return "not a number"
    if isinstance(want, bool) or want != want or have == want:
        return "wrong"
    return "too large" if have > want else "too small"
