"""Assignment 03: the ring, in which new tokens overwrite old ones."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from decoding.course.assignment import Assignment, Call, Check, Hole, Outputs, cleaned, own, variant
from decoding.course.catalogue.inputs import float32, int32
from gemma4 import cache

POSITIONS, WRITE = "gemma4.cache.slot_positions", "gemma4.cache.write"
RULE = "last[:, None] - (last[:, None] - slots) % capacity"
BATCH, HEADS, CAPACITY, WIDTH, TIME = 3, 2, 7, 4, 5


def reference_write(buffer: np.ndarray, new: np.ndarray, start: np.ndarray) -> np.ndarray:
    tokens = jnp.asarray(new)
    return np.asarray(
        cache.write(cache.LayerKV(jnp.asarray(buffer), jnp.asarray(buffer)), tokens, tokens, jnp.asarray(start)).key
    )


# -- inputs ------------------------------------------------------------------------------------------------------------


def positions(last: Sequence[int], capacity: int, about: str) -> Call:
    return Call("slot_positions", {"last": int32(last), "capacity": capacity}, about)


def written(rng: np.random.Generator, start: Sequence[int], about: str, time: int = TIME) -> Call:
    start_of = int32(start)
    given = {
        "buffer": rng.normal(0, 1, (len(start_of), HEADS, CAPACITY, WIDTH)).astype(np.float32),
        "new": rng.normal(0, 1, (len(start_of), time, HEADS, WIDTH)).astype(np.float32),
        "start": start_of,
    }
    return Call("write", given, about)


def example(rng: np.random.Generator) -> list[Call]:
    buffer = np.zeros((1, 1, 4, 1), np.float32)
    new = float32([10, 11, 12]).reshape(1, 3, 1, 1)
    return [
        positions([5, 1], 4, "four slots"),
        Call("write", {"buffer": buffer, "new": new, "start": int32([3])}, "three tokens from position 3 on"),
    ]


def random(rng: np.random.Generator) -> list[Call]:
    return [
        positions(sorted(rng.integers(0, 40, BATCH).tolist()), CAPACITY, "three rows"),
        written(rng, rng.integers(0, 40, BATCH).tolist(), "three rows"),
    ]


def values(rng: np.random.Generator) -> list[Call]:
    full, turns = CAPACITY - 1, CAPACITY * int(rng.integers(2, 5))
    return [
        positions([0, 1, full - 1], CAPACITY, "a ring that is not full yet"),
        positions([full, full + 1, 2 * CAPACITY], CAPACITY, "a ring that has just become full"),
        positions([turns - 1, 3, turns + int(rng.integers(1, CAPACITY))], CAPACITY, "rows of very different length"),
        positions([2], 5, "a batch of one"),
        written(rng, [0, 1, CAPACITY - TIME], "tokens before the end of the ring"),
        written(rng, [CAPACITY - 2, CAPACITY - 1, turns + 4], "tokens across the end of the ring"),
        written(rng, [turns, 0, 2 * turns + 3], "rows of very different length"),
        written(rng, [CAPACITY - 1, 2, turns], "a single token", time=1),
    ]


def read_back(rng: np.random.Generator) -> list[Call]:
    starts = [0, CAPACITY - 2, 3 * CAPACITY + 4]
    call = written(rng, starts, "tokens that are read back")
    return [call, positions([start + TIME - 1 for start in starts], CAPACITY, "the same ring")]


def judge_read_back(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    """Every slot holds the token whose position it is said to hold, or what it held before."""
    given, ((after,), (held,)) = calls[0].arguments, outputs
    before, new, start = given["buffer"], given["new"], given["start"]
    if after.shape != before.shape or held.shape != (BATCH, CAPACITY):
        return "a result has another shape than the page says"
    for row, slot in np.ndindex(BATCH, CAPACITY):
        step = int(held[row, slot] - start[row])
        is_new = 0 <= step < TIME
        if not np.array_equal(after[row, :, slot], new[row, step] if is_new else before[row, :, slot]):
            said = "holds a token of this write" if is_new else "holds an older token, or nothing"
            return f"slot_positions says that a slot {said}, and write has left something else there"
    for row in range(BATCH):
        if set(range(int(start[row]), int(start[row]) + TIME)) - set(held[row].tolist()):
            return "a token that was written is in no slot, by slot_positions"
    return None


ASSIGNMENT = Assignment(
    number="03",
    slug="ring",
    title="The ring",
    question="How can a cache of a few slots serve a text of any length?",
    hours=3,
    read=("glossary.md: KV cache, slot, ring, sliding window",),
    task=cleaned(
        """
        A sliding layer never looks further back than its window, so its cache has `capacity` slots and no more.  The token at
        absolute position p lies in slot p % capacity.  There is nothing else to remember: from the newest position alone, one
        can say what every slot holds.
        """
    ),
    by_hand="With a window of w and at most t tokens written at once, what is the least capacity at which every query still "
    "finds its keys? Prove it.",
    hints=(
        "Draw seven slots and write the positions 0 to 15 into them, one by one.",
        "Look at one slot: how far apart are the positions that it held?",
        "What is -1 % 7 in Python, and what in C?",
    ),
    holes=(
        Hole(
            name="slot_positions",
            function=POSITIONS,
            signature="(last, capacity)",
            docstring=cleaned(
                """
                The absolute position that each slot holds when `last` is the newest that was written.

                last:     int32 [b].
                capacity: int, the number of slots.
                Returns:  int [b, capacity]; negative where nothing was written yet: the position that the slot would have
                          held one turn earlier.
                """
            ),
            outputs=("positions",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                like = jnp.zeros((last.shape[0], capacity), jnp.int32)
                return solve("03 slot_positions", last, capacity, like=like)
                """
            ),
        ),
        Hole(
            name="write",
            function=WRITE,
            signature="(buffer, new, start)",
            docstring=cleaned(
                """
                The buffer after the tokens of positions start .. start + t - 1 were written into their slots.

                buffer:  float32 [b, heads, capacity, h]; it must not be changed.
                new:     float32 [b, t, heads, h], with t at most the capacity.
                start:   int32 [b], the position of each row's first token.
                Returns: float32 [b, heads, capacity, h].
                """
            ),
            outputs=("buffer",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                new_key = solve("03 write", kv.key, key, start, like=kv.key)
                return LayerKV(new_key, solve("03 write", kv.value, value, start, like=kv.value))
                """
            ),
            reference=reference_write,
        ),
    ),
    checks=(
        Check(name="example", what="the page's example", points=1, calls=example, is_public=True),
        Check(name="random", what="three random rows", points=1, calls=random, is_public=True),
        Check(name="values", what="empty, full and wrapped rings, rows of different length", points=5, calls=values),
        Check(
            name="read_back",
            what="what was written is found where slot_positions says",
            points=2,
            calls=read_back,
            judge=judge_read_back,
        ),
    ),
    misconceptions=(
        own(
            "positions-from-the-left",
            POSITIONS,
            {RULE: "jnp.maximum(last[:, None] - capacity + 1, 0) + slots"},
            "Your slots are in the order of time: right until the ring is full once. Write one token more than there are "
            "slots, and print what each slot holds.",
        ),
        own(
            "newest-off-by-one",
            POSITIONS,
            {RULE: "last[:, None] - 1 - (last[:, None] - 1 - slots) % capacity"},
            "The newest token is missing. Is `last` a position or a count? Try a text of one token.",
        ),
        own(
            "empty-is-zero",
            POSITIONS,
            {RULE: f"jnp.maximum({RULE}, 0)"},
            "Slots without a token claim to hold position 0. Which queries would look at them?",
        ),
        own(
            "one-length-for-all-rows",
            POSITIONS,
            {RULE: f"({RULE.replace('last[:, None]', 'last.max()')}) + 0 * last[:, None]"},
            "Right for one batch row, wrong for two of different length.",
        ),
        own(
            "slots-sorted-by-time",
            POSITIONS,
            {RULE: f"jnp.sort({RULE}, axis=-1)"},
            "The positions are right as a set, and stand in the wrong slots.",
        ),
        own(
            "negative-remainder",
            POSITIONS,
            {RULE: "last[:, None] - jnp.fmod(last[:, None] - slots, capacity)"},
            "Right once the ring is full, wrong before: slots that are still empty claim tokens that come later. What is the "
            "remainder of a negative number?",
        ),
        own(
            "write-past-the-end",
            WRITE,
            {"(start[:, None] + jnp.arange(time)) % kv.capacity": "start[:, None] % kv.capacity + jnp.arange(time)"},
            "A write that crosses the end of the ring loses tokens. Start two slots before the end, with five tokens.",
        ),
        own(
            "other-slots-cleared",
            WRITE,
            {"return buffer.at[": "return jnp.zeros_like(buffer).at["},
            "Slots that the write does not touch have changed. Who still needs what they held?",
        ),
        own(
            "one-start-for-all-rows",
            WRITE,
            {"(start[:, None] + jnp.arange(time))": "(start.max() + jnp.arange(time) + 0 * start[:, None])"},
            "The tokens of all batch rows go to the same slots. Where does a row's next token belong if the rows have "
            "different length?",
        ),
        own(
            "always-from-the-first-slot",
            WRITE,
            {"(start[:, None] + jnp.arange(time))": "(jnp.arange(time) + 0 * start[:, None])"},
            "Every write begins at the first slot, whatever the position. Write twice, and look for the first tokens.",
        ),
    ),
    equivalents=(
        variant(
            "by-whole-turns", POSITIONS, {RULE: "slots + (last[:, None] - slots) // capacity * capacity"}
        ),
        variant("slots-repeated", WRITE, {", unique_indices=True": ""}),
    ),
    excused={"start[:, None] + jnp.arange(time)": "the positions of a forward pass, in gemma4/model.py"},
    rewritten={
        "gemma4/cache.py": {
            "Reading the rule backwards: with `last` the newest position written by the current forward, slot s holds "
            "position\nlast - ((last - s) mod capacity).  `slot_positions` computes that;": "Read backwards, the rule says "
            "what each slot holds.  `slot_positions` computes that;",
        }
    },
)  # fmt: skip
