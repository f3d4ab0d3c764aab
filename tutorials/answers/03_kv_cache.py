"""Answers to the exercises of tutorial 03."""

from exercises import kv_cache as exercise

# 3.1  The tokens are at positions 0 to 20.  Slot 3 takes positions 3, 11 and 19, each over the one before.
assert exercise.check_1(19)


# 3.2  The first query of a pass that begins at n sees n - w + 1; the last token of the pass is at n + c - 1.  All of these,
# w + c - 1 positions, must be in the ring at once.  No more are needed: with that capacity a rejected slot is read as
# a - w at most, and the target's oldest key is at n - w + 1 > a - w.
def fewest_slots(window, chunk):
    return window + chunk - 1


assert exercise.check_2(fewest_slots)


# 3.3  A rejected slot holds at most a + c - 1 and is read one turn earlier.  At n = a + 1 the drafter's newest key is at a,
# and it sees w + 1 keys, a - w to a.  The lie must be older: a + c - 1 - capacity < a - w, so capacity > w + c - 1.  With the
# w + c - 1 slots of 3.2 the newest lie would be read as a - w, the drafter's oldest key.  Its longer window costs one slot.
def newest_lie(start, chunk, capacity):
    return start + chunk - 1 - capacity


def oldest_seen_by_drafter(start, window):
    return start - window


assert exercise.check_3(newest_lie, oldest_seen_by_drafter)
