"""Checks of the exercises in 03."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from exercises import say
from gemma4.cache import slot_positions
from gemma4.functional import attention_mask


def check_1(slot_3_holds: int | None) -> bool:
    """The position in slot 3 of 8 after 21 tokens."""
    if slot_3_holds is None:
        return say("3.1", False, "put a position there, a whole number.")
    if not 0 <= slot_3_holds < 21:
        return say("3.1", False, "21 tokens were written, and the first one is at position 0.")
    if slot_3_holds % 8 != 3:
        return say("3.1", False, "that position is in another slot; divide it by 8 and look at the remainder.")
    right = int(slot_positions(jnp.array([20]), 8)[0, 3])
    return say(
        "3.1", slot_3_holds == right, "several positions belong in that slot, and each overwrites the one before."
    )


def check_2(fewest_slots: Callable[[int, int], int | None]) -> bool:
    """The least capacity for a window and a chunk, compared with a search over simulated rings."""
    for window, chunk in ((6, 5), (4, 3), (7, 2), (3, 6), (5, 1)):
        answer = fewest_slots(window, chunk)
        if answer is None:
            return say("3.2", False, "the function returns None: let it return a number of slots.")
        if not works(window, chunk, answer):
            sentence = "a query misses a key of its window, or sees a rejected one."
            return say("3.2", False, f"with window {window}, passes of {chunk} and {answer} slots, {sentence}")
        if works(window, chunk, answer - 1):
            return say("3.2", False, f"with window {window} and passes of {chunk}, fewer than {answer} slots do.")
    return say("3.2", True, "that many slots suffice for all sizes tried, and one fewer never does.")


def works(window: int, chunk: int, capacity: int) -> bool:
    """Whether every query sees the keys of its window and no others, whatever part of a pass is kept (at least one token)."""
    if capacity < chunk:
        return False
    for kept in range(1, chunk + 1):
        for next_size in range(1, chunk + 1):
            if not _next_pass_is_right(window, chunk, capacity, kept, next_size):
                return False
    return True


def _next_pass_is_right(window: int, chunk: int, capacity: int, kept: int, next_size: int) -> bool:
    start = 3 * capacity + window  # some turns on
    ring = np.full(capacity, -1)
    for position in range(start + chunk):
        ring[position % capacity] = position
    begin = start + kept
    for position in range(begin, begin + next_size):
        ring[position % capacity] = position
    last = begin + next_size - 1
    read_as = last - (last - np.arange(capacity)) % capacity
    for query in range(begin, last + 1):
        seen = (read_as <= query) & (read_as > query - window)
        if sorted(ring[seen]) != list(range(query - window + 1, query + 1)):
            return False
    return True


def check_3(newest_lie: Callable[[int, int, int], int | None], oldest_seen: Callable[[int, int], int | None]) -> bool:
    """Both sides of the inequality, compared with the library's formulas at many sizes."""
    for start, window, chunk, capacity in ((40, 6, 5, 11), (50, 4, 3, 8), (97, 7, 9, 16), (64, 3, 2, 5)):
        lie, oldest = newest_lie(start, chunk, capacity), oldest_seen(start, window)
        if lie is None or oldest is None:
            return say("3.3", False, "a function returns None: let both return a position.")
        rejected = jnp.arange(start + 1, start + chunk)
        read_as = slot_positions(jnp.array([start]), capacity)[0, rejected % capacity]
        if lie != int(read_as.max()):
            return say(
                "3.3", False, "the lie: a rejected slot is read as one turn of the ring earlier; take the newest one."
            )
        keys = jnp.arange(start + 1)[None]
        mask = attention_mask(jnp.array([[start]]), keys, window + 1)[0, 0]
        if oldest != int(jnp.argmax(mask)):
            return say("3.3", False, "the oldest key: count w + 1 keys back from the newest, which is at n − 1.")
    return say("3.3", True, "the lie must be older than the oldest key in sight; solve that for the capacity.")
