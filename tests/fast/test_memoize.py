"""Arrays that are computed from weights once, follow the weights, and are freed with them."""

import gc
import weakref

import jax.numpy as jnp
import numpy as np

from gemma4.fast.memoize import memoize_by_array


def test_memo_by_all_arrays():
    """Another array means another result; a result lives as long as all arrays that it was computed from."""
    calls = []

    @memoize_by_array
    def pick(table, order):
        calls.append(0)
        return table[order]

    table, order = jnp.arange(4.0) + 5, jnp.array([2, 0])
    first = pick(table, order)
    assert pick(table, order) is first and len(calls) == 1
    np.testing.assert_array_equal(pick(table, jnp.array([1, 3])), [6, 8])  # this order is freed here
    np.testing.assert_array_equal(pick(table * 2, order), [14, 10])
    assert pick(table, order) is first and len(calls) == 3
    first = weakref.ref(first)
    del order
    gc.collect()
    assert first() is None and not jnp.isnan(table).any()
    for value in range(20):  # a new array may get the id of one that was freed
        np.testing.assert_array_equal(pick(table, jnp.array([value % 4])), [5 + value % 4])


def test_numbers_are_part_of_the_key():
    times, table = memoize_by_array(lambda table, factor: table * factor), jnp.arange(3.0)
    double, triple = times(table, 2), times(table, 3)
    np.testing.assert_array_equal(double, [0, 2, 4])
    np.testing.assert_array_equal(triple, [0, 3, 6])
    assert times(table, 2) is double
