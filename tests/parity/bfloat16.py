"""Comparing bfloat16 numbers bit for bit: a compiler that rounds where the program does, and a count of what is equal."""

import functools

import jax
import numpy as np

# XLA keeps more bits than bfloat16 between fused operations unless it is told to round wherever the program does.
round_everywhere = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})


def share_equal(ours, theirs) -> float:
    """The share of elements that are the same number; float32 ones within 4 units in the last place."""
    within = 2**-21 if ours.dtype == np.float32 else 0
    ours, theirs = np.float32(ours), np.float32(theirs)
    assert ours.shape == theirs.shape
    return float(np.mean(np.isclose(ours, theirs, rtol=within, atol=0)))


def share_equal_but_for_one(ours, theirs, rows: int) -> float:
    """The same for all rows of the batch except the one that is least equal.

    A sum in another order may round the other way, and then changes the later layers of its own row, and of no other.  A
    rounding at a wrong point changes all rows.
    """
    by_row = (np.asarray(values).reshape(rows, -1) for values in (ours, theirs))
    shares = sorted(share_equal(*pair) for pair in zip(*by_row, strict=True))
    return float(np.mean(shares[1:]))
