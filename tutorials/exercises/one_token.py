"""Checks of the exercises in 02."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from exercises import say
from gemma4.functional import apply_rope, attention, attention_mask, rope_cos_sin

HEAD_DIM, THETA = 64, 10_000.0


def check_1(score: float | None) -> bool:
    """The score of a normed query with a key that equals it."""
    if score is None:
        return say("2.1", False, "put a number there.")
    query = np.sign(np.random.default_rng(0).normal(size=HEAD_DIM))  # its mean square is 1
    right = float(query @ query)
    if np.isclose(score, right):
        return say("2.1", True, "the mean of the squares is 1, a score is a sum, and nothing divides it.")
    if np.isclose(score, 1):
        return say("2.1", False, "RMSNorm makes the *mean* of the squares 1; which length has the vector then?")
    if np.isclose(score, right**0.5):
        return say("2.1", False, "is there a division by a square root in Gemma 4's scores?")
    return say("2.1", False, "the score is the dot product of two equal vectors: a sum of squares.")


def check_2(visible_more: Callable[[int, int], np.ndarray | None], differences: Sequence[int]) -> bool:
    """The mask of the other window, and by how many keys it differs."""
    counts = {}
    for tokens, window in ((12, 4), (9, 3), (7, 1), (41, 20)):
        mine = visible_more(tokens, window)
        if np.shape(mine) != (tokens, tokens):
            return say("2.2", False, f"visible_more({tokens}, {window}) should be an array [queries, keys].")
        positions = jnp.arange(tokens)[None]
        right = np.asarray(attention_mask(positions, positions, window + 1)[0])
        if np.triu(mine, 1).any():
            return say("2.2", False, "a query sees a key that comes after it.")
        if (mine != right).any():
            row = int(np.argmax((mine != right).any(axis=1)))
            sees = f"with window {window}, the query at {row} sees {int(np.sum(mine[row]))} keys"
            return say("2.2", False, f"{sees}; count the earlier ones and its own.")
        counts = right.sum(axis=1) - np.asarray(attention_mask(positions, positions, window)[0]).sum(axis=1)
    expected = [int(counts[position]) for position in (0, window - 1, window, 2 * window)]
    if list(differences) != expected:
        return say("2.2", False, "the mask is right; now count the keys of both at the four positions.")
    return say("2.2", True, "the two differ only where there are more keys than the smaller window holds.")


def check_3(attend: Callable[..., np.ndarray | None]) -> bool:
    """One head of attention; turned values make its result depend on where the text begins."""
    query, key, value = np.random.default_rng(3).normal(size=(3, 7, HEAD_DIM))
    positions = np.arange(7)
    for turns_values in (False, True):
        mine = attend(query, key, value, positions, turns_values)
        if np.shape(mine) != (7, HEAD_DIM):
            return say("2.3", False, f"the result should be an array of shape (7, {HEAD_DIM}).")
        if not np.allclose(mine, _attention(query, key, value, positions, turns_values), atol=1e-3):
            which = "turned values" if turns_values else "plain values"
            return say(
                "2.3", False, f"with {which} the result is another one; are scores undivided and the future hidden?"
            )
    moved = [
        np.abs(attend(query, key, value, positions + 10, turns) - attend(query, key, value, positions, turns)).max()
        for turns in (False, True)
    ]
    if moved[0] > 1e-3 or moved[1] < 1e-3:
        return say("2.3", False, "your result ignores the positions that are given.")
    return say(
        "2.3", True, f"moved by 10, plain values change the result by {moved[0]:.0e}, turned ones by {moved[1]:.1f}."
    )


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, positions: np.ndarray, turns: bool) -> np.ndarray:
    """The library's formulas, for one head."""
    where = jnp.asarray(positions)[None]
    cos_sin = rope_cos_sin(where, HEAD_DIM, THETA)
    query, key, value = (jnp.asarray(x, jnp.float32)[None, :, None] for x in (query, key, value))
    value = apply_rope(value, cos_sin) if turns else value
    key, value = (x.transpose(0, 2, 1, 3) for x in (apply_rope(key, cos_sin), value))
    return np.asarray(attention(apply_rope(query, cos_sin), key, value, attention_mask(where, where, None))[0, :, 0])
