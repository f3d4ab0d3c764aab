"""Assignment 01: who sees whom, and attention."""

from collections.abc import Sequence

import numpy as np

from decoding.course.assignment import Arguments, Assignment, Call, Check, Cut, Hole, Outputs, cleaned, known, own
from decoding.course.catalogue.inputs import bools, float32, int32
from decoding.oracle.known_bugs import EQUIVALENT

MASK, ATTENTION = "gemma4.functional.attention_mask", "gemma4.functional.attention"
BATCH, QUERIES, SLOTS, HEADS, KV_HEADS, WIDTH, WINDOW = 2, 4, 9, 4, 2, 3, 4


def of_seeing_queries(arguments: Arguments, outputs: Outputs) -> list[np.ndarray]:
    """The result of a query that sees nothing has no meaning."""
    seeing = arguments["mask"].any(axis=-1)[:, :, None, None]
    return [np.broadcast_to(seeing, outputs[0].shape)]


# -- inputs ------------------------------------------------------------------------------------------------------------


def masks(rng: np.random.Generator, about: str, window: int | None, *, newest: int = 20, empty: int = 0) -> Call:
    """Queries at the end of a text, and a ring with the keys before them and among them; some slots are empty."""
    last = newest + rng.integers(0, 5, BATCH)
    queries = last[:, None] - QUERIES + 1 + np.arange(QUERIES)
    keys = last[:, None] - rng.permuted(np.tile(np.arange(SLOTS), (BATCH, 1)), axis=1)
    if empty:
        keys[:, :empty] = -1 - rng.integers(0, 3, (BATCH, empty))
    given = {"query_positions": queries.astype(np.int32), "key_positions": keys.astype(np.int32), "window": window}
    return Call("attention_mask", given, about)


def attends(
    rng: np.random.Generator, about: str, *, seen: float = 0.6, poison: float | None = None, kv_heads: int = KV_HEADS
) -> Call:
    mask = np.array(rng.random((BATCH, QUERIES, SLOTS)) < seen)
    mask[:, :, 0] |= ~mask.any(axis=-1)
    mask[:, :, -1] = False  # a slot that nobody sees
    value = rng.normal(0, 1, (BATCH, kv_heads, SLOTS, WIDTH))
    key = rng.normal(0, 1, value.shape)
    if poison is not None:
        unseen = np.logical_not(np.asarray(mask.any(axis=1)))[:, None, :, None]
        key, value = np.where(unseen, poison, key), np.where(unseen, poison, value)
    given = {
        "query": rng.normal(0, 1, (BATCH, QUERIES, HEADS, WIDTH)).astype(np.float32),
        "key": key.astype(np.float32),
        "value": value.astype(np.float32),
        "mask": mask,
    }
    return Call("attention", given, about)


def example(rng: np.random.Generator) -> list[Call]:
    seen = {"query_positions": int32([[4, 5]]), "key_positions": int32([[4, 5, 2, 3, -1]])}
    given = {
        "query": float32([1, 0, 0, 2]).reshape(1, 1, 2, 2),
        "key": float32([1, 0, 0, 1, 2, 2]).reshape(1, 1, 3, 2),
        "value": float32([1, 2, 3, 4, 5, 6]).reshape(1, 1, 3, 2),
        "mask": bools([[[True, True, False]]]),
    }
    return [
        Call("attention_mask", {**seen, "window": None}, "a full layer"),
        Call("attention_mask", {**seen, "window": 2}, "a window of two"),
        Call("attention", given, "one query with two heads, and two of three keys in sight"),
    ]


def random(rng: np.random.Generator) -> list[Call]:
    return [masks(rng, "a sliding layer", WINDOW), attends(rng, "two KV heads for four query heads")]


def values(rng: np.random.Generator) -> list[Call]:
    return [
        masks(rng, "a full layer", None),
        masks(rng, "a sliding layer", WINDOW),
        masks(rng, "a full layer with empty slots", None, empty=2),
        masks(rng, "a sliding layer at the beginning of the text, with empty slots", WINDOW, newest=3, empty=3),
        attends(rng, "two KV heads for four query heads"),
        attends(rng, "one KV head", kv_heads=1),
        attends(rng, "few keys in sight", seen=0.25),
        attends(rng, "NaN where nobody looks", poison=float("nan")),
        attends(rng, "huge numbers where nobody looks", poison=1e30),
    ]


def ones(rng: np.random.Generator) -> list[Call]:
    """Values of one; and two caches that differ where nobody looks."""
    plain, changed = attends(rng, "values that are all one"), attends(rng, "any values")
    plain.arguments["value"] = np.ones_like(plain.arguments["value"])
    unseen = ~changed.arguments["mask"].any(axis=1)[:, None, :, None]
    other = {name: np.where(unseen, 7.0, changed.arguments[name]).astype(np.float32) for name in ("key", "value")}
    return [plain, changed, Call("attention", {**changed.arguments, **other}, "other numbers where nobody looks")]


def judge_ones(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    (of_ones,), (before,), (after,) = outputs
    shape = calls[0].arguments["query"].shape
    if any(out.shape != shape for out in (of_ones, before, after)):
        return "the result should have the shape of the query"
    if not np.allclose(of_ones, 1, atol=1e-4):
        return "where every value is one, a result is not: the weights over the keys in sight do not sum to one"
    if not np.allclose(before, after, atol=1e-4):
        return "a result depends on keys or values that nobody sees"
    if np.ptp(before) < 1e-3:
        return "the results are all the same"
    return None


ASSIGNMENT = Assignment(
    number="01",
    slug="attention",
    title="Who sees whom",
    question="Which tokens does a token read, and how does it read them?",
    hours=3,
    read=("gemma4/layers.py", "glossary.md: attention mask, full attention, sliding window, GQA"),
    task=cleaned(
        """
        A query sees its own token and earlier ones.  In a sliding layer it sees at most `window` keys, its own included.  Keys
        lie in slots in any order, and their positions say which is which; a slot with a negative position holds nothing.

        Attention then mixes the values that each query sees, with the softmax of its scores as weights.  A score is the dot
        product of query and key as it is: Gemma 4 normalises both before they meet.  Groups of neighbouring query heads share a
        KV head: with four query heads and two KV heads, query heads 0 and 1 read KV head 0.
        """
    ),
    by_hand="Why does your mask stay the same if all positions grow by one number, and what else in the model uses positions?",
    hints=(
        "Draw the mask for three queries and five keys with a window of two.",
        "Make all values one. What must come out?",
        "What is 0 times NaN?",
    ),
    holes=(
        Hole(
            name="attention_mask",
            function=MASK,
            signature="(query_positions, key_positions, window)",
            docstring=cleaned(
                """
                Which keys each query sees.

                query_positions: int32 [b, t]; key_positions: int32 [b, s], absolute; negative where a slot is empty.
                window:          None in a full layer; in a sliding one how many keys a query sees at most, its own included.
                Returns:         bool [b, t, s].
                """
            ),
            outputs=("mask",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                like = jnp.zeros((*query_positions.shape, key_positions.shape[1]), bool)
                if window is None:
                    return solve("01 attention_mask", query_positions, key_positions, None, like=like)
                return solve("01 attention_mask", query_positions, key_positions, window, like=like)
                """
            ),
        ),
        Hole(
            name="attention",
            function=ATTENTION,
            signature="(query, key, value, mask)",
            docstring=cleaned(
                """
                Grouped-query attention with scale 1.

                query:      float32 [b, t, n, h]; n is a multiple of k.
                key, value: float32 [b, k, s, h].  Slots that no query sees may hold anything, NaN included.
                mask:       bool [b, t, s].
                Returns:    float32 [b, t, n, h]; anything for a query that sees nothing.
                """
            ),
            outputs=("mixed",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                return solve("01 attention", query, key, value, mask, like=jnp.zeros(query.shape, value.dtype))
                """
            ),
            meaning=of_seeing_queries,
        ),
    ),
    checks=(
        Check(name="example", what="the page's example", points=1, calls=example, is_public=True),
        Check(name="random", what="one random mask and one random attention", points=1, calls=random, is_public=True),
        Check(name="values", what="windows, empty slots, several heads, NaN where nobody looks", points=5, calls=values),
        Check(
            name="weights",
            what="weights sum to one, and what nobody sees changes nothing",
            points=2,
            calls=ones,
            judge=judge_ones,
        ),
    ),
    misconceptions=(
        known(
            "window-one-too-long",
            "A query sees one key more than the window's size. Count the keys seen at position 20 with a window of 4, its own "
            "included.",
        ),
        known(
            "window-one-too-short",
            "A query sees one key fewer than the window's size. Count them at position 20 with a window of 4, its own "
            "included.",
        ),
        known("not-causal", "Some query looks at a token that comes after it."),
        known(
            "window-looks-both-ways",
            "In a sliding layer distances are taken without regard to direction. Try one query between an earlier and a "
            "later key.",
        ),
        own(
            "empty-slots-in-sight",
            MASK,
            {"(key >= 0) & (key <= query)": "key <= query"},
            "A slot that holds nothing takes part. What stands in an empty slot, and what does the softmax make of it?",
        ),
        own(
            "own-token-not-seen",
            MASK,
            {"(key <= query)": "(key < query)"},
            "A query does not see its own token. What does the first token of a text see?",
        ),
        known(
            "attention-scaled-down",
            "Your scores are smaller than the page's by a constant factor. Gemma 4 treats queries and keys before they "
            "meet; is anything left to do after?",
        ),
        known(
            "heads-grouped-the-other-way",
            "With one KV head all is right, with two some heads read the other's keys. Which query heads belong together?",
        ),
        own(
            "masked-after-the-softmax",
            ATTENTION,
            {
                "    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)\n": (
                    "    scores = jnp.where(mask.any(axis=1)[:, None, None, None], scores, jnp.finfo(jnp.float32).min)\n"
                ),
                "probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)": "probs = jnp.where(mask[:, None, None], "
                "jax.nn.softmax(scores, axis=-1), 0).astype(value.dtype)",
            },
            "Put ones in all values: each result should then be one. What do the weights over the keys in sight sum to?",
        ),
        own(
            "nan-times-zero",
            ATTENTION,
            {"jnp.where(is_seen, value, 0)": "value"},
            "Slots that nobody sees may hold NaN. A weight of zero does not make NaN vanish.",
        ),
        own(
            "mask-ignored",
            ATTENTION,
            {
                "jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)": "jnp.where(is_in_use(mask), scores, "
                "jnp.finfo(jnp.float32).min)",
                '    grouped = rearrange(query,': "    is_in_use = lambda mask: mask.any(axis=1)[:, None, None, None]\n"
                "    grouped = rearrange(query,",
            },
            "Every query reads all keys that any query sees. Where do you use the mask, query by query?",
        ),
    ),
    equivalents=tuple(
        EQUIVALENT[name]
        for name in (
            *("heads-repeated", "masked-with-minus-infinity", "window-by-distance"),
            "attention-scale-folded-into-the-query",
        )
    ),
    cuts=(
        Cut(
            function="gemma4.fast.attention.FastAttention.attend",
            body="return attention(query, kv.key, kv.value, mask)",
        ),
        Cut(
            function="gemma4.fast.long_attention.attention_in_blocks",
            docstring="Left out.",
            body="raise NotImplementedError",
        ),
    ),
)  # fmt: skip
