"""Assignment 10: the book-keeping of a round: what is emitted, what stays in the cache, what the next round starts from."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from decoding import state as decode_state
from decoding.course.assignment import Arguments, Assignment, Call, Check, Hole, Outputs, cleaned, known, own, variant
from decoding.course.catalogue.inputs import bools, float32, int32
from decoding.stages import rollback as rollback_module
from gemma4 import KVCache

NEXT, COUNT = "decoding.stages.emit.with_next_token", "decoding.stages.emit.count_emitted"
ROLLBACK, ADVANCE = "decoding.stages.rollback.rollback", "decoding.state.advance"
BATCH, TIME, WIDTH, VOCABULARY = 24, 5, 3, 9
EOS = int32([1, 6])
SHORTEST = "jnp.where(done, 0, jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room))"


def reference_length(length_before: np.ndarray, num_written: np.ndarray, num_emitted: np.ndarray) -> np.ndarray:
    cache = KVCache((), jnp.asarray(length_before) + jnp.asarray(num_written))
    return np.asarray(rollback_module.rollback(cache, jnp.asarray(length_before), jnp.asarray(num_emitted)).length)


def reference_next(
    tokens: np.ndarray, hidden: np.ndarray, num_emitted: np.ndarray, token_before: np.ndarray, hidden_before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The two fields of `advance` that matter here."""
    rows = jnp.zeros(len(tokens), jnp.int32)
    kept = decode_state.Round(
        jnp.asarray(tokens[:, 1:]), jnp.asarray(num_emitted), jnp.asarray(tokens), jnp.asarray(num_emitted)
    )
    state = decode_state.DecodeState(
        KVCache((), rows), jnp.asarray(token_before), jnp.asarray(hidden_before), jax.random.key(0), rows, rows, rows > 0,
        kept, rows == 0,
    )  # fmt: skip
    logits = jnp.zeros((*tokens.shape, 2))
    after = decode_state.advance(state, kept, jnp.asarray(hidden), logits, state.cache, state.key, state.done)
    return np.asarray(after.token), np.asarray(after.hidden)


def up_to_the_next_token(arguments: Arguments, outputs: Outputs) -> list[np.ndarray]:
    """What follows the next token has no meaning."""
    return [np.arange(outputs[0].shape[1]) <= arguments["num_accepted"][:, None]]


# -- inputs ------------------------------------------------------------------------------------------------------------


def joined(rng: np.random.Generator, about: str) -> Call:
    given = {
        "draft_tokens": rng.integers(0, VOCABULARY, (BATCH, TIME - 1)).astype(np.int32),
        "num_accepted": rng.integers(0, TIME, BATCH).astype(np.int32),
        "next_token": rng.integers(0, VOCABULARY, BATCH).astype(np.int32),
    }
    return Call("with_next_token", given, about)


def counted(rng: np.random.Generator, about: str, *, eos_share: float = 0.15, room: int = 8, done: float = 0.2) -> Call:
    plain = rng.choice([0, 2, 3, 4, 5, 7, 8], (BATCH, TIME))
    tokens = np.where(rng.random((BATCH, TIME)) < eos_share, rng.choice(EOS, (BATCH, TIME)), plain)
    given = {
        "tokens": tokens.astype(np.int32),
        "num_tokens": rng.integers(1, TIME + 1, BATCH).astype(np.int32),
        "room": rng.integers(1, room + 1, BATCH).astype(np.int32),
        "done": rng.random(BATCH) < done,
        "eos_ids": EOS,
    }
    return Call("count_emitted", given, about)


def lengths(rng: np.random.Generator, about: str) -> Call:
    given = {
        "length_before": rng.integers(1, 90, BATCH).astype(np.int32),
        "num_written": np.full(BATCH, TIME, np.int32),
        "num_emitted": rng.integers(0, TIME + 1, BATCH).astype(np.int32),
    }
    return Call("committed_length", given, about)


def starts(rng: np.random.Generator, about: str) -> Call:
    given = {
        "tokens": rng.integers(0, VOCABULARY, (BATCH, TIME)).astype(np.int32),
        "hidden": rng.normal(0, 1, (BATCH, TIME, WIDTH)).astype(np.float32),
        "num_emitted": rng.integers(0, TIME + 1, BATCH).astype(np.int32),
        "token_before": rng.integers(0, VOCABULARY, BATCH).astype(np.int32),
        "hidden_before": rng.normal(0, 1, (BATCH, WIDTH)).astype(np.float32),
    }
    return Call("next_start", given, about)


def example(rng: np.random.Generator) -> list[Call]:
    joined_given = {
        "draft_tokens": int32([[5, 3, 7], [4, 4, 8]]),
        "num_accepted": int32([1, 3]),
        "next_token": int32([2, 9]),
    }
    counted_given = {
        "tokens": int32([[5, 1, 7, 9], [4, 4, 8, 9]]),
        "num_tokens": int32([3, 4]),
        "room": int32([8, 2]),
        "done": bools([False, False]),
        "eos_ids": EOS,
    }
    length_given = {
        "length_before": int32([10, 20]),
        "num_written": int32([4, 4]),
        "num_emitted": int32([2, 4]),
    }
    next_given = {
        "tokens": int32([[5, 1, 7, 9], [4, 4, 8, 9]]),
        "hidden": np.arange(8, dtype=np.float32).reshape(2, 4, 1) + 10,
        "num_emitted": int32([2, 0]),
        "token_before": int32([3, 6]),
        "hidden_before": float32([[1], [2]]),
    }
    return [
        Call("with_next_token", joined_given, "one and three accepted drafts"),
        Call("count_emitted", counted_given, "an end-of-text token, and a short budget"),
        Call("committed_length", length_given, "two rows"),
        Call("next_start", next_given, "a row that emitted two tokens, and one that was done"),
    ]  # fmt: skip


def random(rng: np.random.Generator) -> list[Call]:
    about = "random rows"
    return [joined(rng, about), counted(rng, about), lengths(rng, about), starts(rng, about)]


def values(rng: np.random.Generator) -> list[Call]:
    return [
        joined(rng, "24 rows"),
        counted(rng, "many end-of-text tokens", eos_share=0.4),
        counted(rng, "short budgets", room=4, eos_share=0.2),
        counted(rng, "no end of text and no row that is done", eos_share=0.0, done=0.0, room=7),
        lengths(rng, "24 rows"),
        starts(rng, "24 rows"),
        starts(rng, "24 more rows"),
    ]


def alone(rng: np.random.Generator) -> list[Call]:
    call = counted(rng, "rows together", eos_share=0.2, room=5)
    each = [
        Call(
            "count_emitted",
            {n: v if n == "eos_ids" else v[i : i + 1] for n, v in call.arguments.items()},
            f"row {i} alone",
        )
        for i in range(4)
    ]
    return [call, *each]


def judge_alone(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    (emitted, done), *each = outputs
    given = calls[0].arguments
    if emitted.shape != (BATCH,) or done.shape != (BATCH,) or any(one[0].shape != (1,) for one in each):
        return "a result has another shape than one value for each batch row"
    if not np.array_equal(emitted[:4], np.concatenate([one[0] for one in each])):
        return "how many tokens of a row are emitted depends on the rows beside it"
    if (emitted > given["room"])[~given["done"]].any():
        return "more tokens are emitted than the budget has left"
    if emitted[given["done"]].any() or not done.astype(bool)[given["done"]].all():
        return "a row that was done does not stand still"
    if not (emitted[~given["done"]] >= 1).all():
        return "a row that is not done emits nothing"
    return None


ASSIGNMENT = Assignment(
    number="10",
    slug="bookkeeping",
    title="The book-keeping of a round",
    question="After the verdict, what is emitted, what stays in the cache, and what does the next round start from?",
    hours=3,
    read=("decoding/stages/verify.py", "glossary.md: EOS, budget, rollback, hidden state"),
    task=cleaned(
        """
        Verify has written the newest token and all drafts into the cache, and gave a hidden state for each of these tokens:
        number i is that of input token i, and it predicted the token after it.  Acceptance said how many drafts stay.

        A batch row ends after its first end-of-text token, which is emitted, and when its budget is used up.  A row that is
        done emits nothing and keeps what it had.  The newest emitted token is never in the cache: the next round writes it.  So
        after each round, the cache's length is the prompt's length plus the tokens emitted so far minus one.
        """
    ),
    by_hand="Why may the newest token stay out of the cache until the next round, and what would it cost to write it at once?",
    hints=(
        "Play one round by hand: prompt of 3 tokens, 1 emitted, 4 drafts of which 2 are accepted. Write down what lies in the "
        "cache.",
        "Which hidden state predicted the token that the target added?",
        "An end-of-text token can be drafted, accepted or rejected, or be the target's own. Try all three.",
    ),
    holes=(
        Hole(
            name="with_next_token",
            function=NEXT,
            signature="(draft_tokens, num_accepted, next_token)",
            docstring=cleaned(
                """
                The tokens of a round: the accepted drafts, then the target's own token.

                draft_tokens: int32 [b, gamma]; num_accepted: int32 [b], 0 .. gamma; next_token: int32 [b].
                Returns:      int [b, gamma + 1]; what follows the target's own token may be anything.
                """
            ),
            outputs=("tokens",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                like = jnp.zeros((draft_tokens.shape[0], draft_tokens.shape[1] + 1), jnp.int32)
                return solve("10 with_next_token", draft_tokens, num_accepted, next_token, like=like)
                """
            ),
            meaning=up_to_the_next_token,
        ),
        Hole(
            name="count_emitted",
            function=COUNT,
            signature="(tokens, num_tokens, room, done, eos_ids)",
            docstring=cleaned(
                """
                How many of each row's first `num_tokens` tokens are emitted, and which rows are done after them.

                tokens:  int32 [b, t]; num_tokens: int32 [b], at least 1.
                room:    int32 [b], the rest of the budget, at least 1 unless the row is done.
                done:    bool [b], before this round.
                eos_ids: int32 [n], the end-of-text tokens.
                Returns: num_emitted int [b], and done bool [b].
                """
            ),
            outputs=("num_emitted", "done"),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                ends = jnp.asarray(eos_ids, jnp.int32)
                return solve("10 count_emitted", tokens, num_tokens, room, done, ends, like=(num_tokens, done))
                """
            ),
        ),
        Hole(
            name="committed_length",
            function=ROLLBACK,
            signature="(length_before, num_written, num_emitted)",
            docstring=cleaned(
                """
                The length that the cache has after a round.

                length_before: int32 [b], before verify; num_written: int32 [b], tokens that verify wrote.
                num_emitted:   int32 [b]; 0 where the row was done.
                Returns:       int [b].
                """
            ),
            outputs=("length",),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                written = cache.length - length_before
                return truncate(cache, solve("10 committed_length", length_before, written, num_kept, like=cache.length))
                """
            ),
            reference=reference_length,
        ),
        Hole(
            name="next_start",
            function=ADVANCE,
            signature="(tokens, hidden, num_emitted, token_before, hidden_before)",
            docstring=cleaned(
                """
                What the next round's drafter starts from: the newest token, and the target's hidden state that predicted it.

                tokens:       int32 [b, gamma + 1], the tokens of this round; the first `num_emitted` were emitted.
                hidden:       float32 [b, gamma + 1, d], the hidden states of verify's input: the token before this round's
                              first, then the drafts.
                token_before, hidden_before: int32 [b] and float32 [b, d], what this round started from.
                Returns:      token int [b], and hidden float32 [b, d].
                """
            ),
            outputs=("token", "hidden"),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                before = state.token, state.hidden
                token, newest = solve("10 next_start", this_round.tokens, hidden, this_round.num_emitted, *before, like=before)
                return DecodeState(
                    cache=cache,
                    token=token,
                    hidden=newest,
                    key=key,
                    emitted=state.emitted + this_round.num_emitted,
                    budget=state.budget,
                    done=done,
                    last=this_round,
                    is_finite=state.is_finite & is_finite(logits),
                    counts=count_tokens(state.counts, this_round.tokens, this_round.num_emitted),
                )
                """
            ),
            reference=reference_next,
        ),
    ),
    checks=(
        Check(name="example", what="the page's example", points=1, calls=example, is_public=True),
        Check(name="random", what="random rows", points=1, calls=random, is_public=True),
        Check(name="values", what="ends of text, short budgets, rows that are done", points=5, calls=values),
        Check(
            name="rows",
            what="batch rows are independent, budgets are kept, and a row that was done stands still",
            points=2,
            calls=alone,
            judge=judge_alone,
        ),
    ),
    misconceptions=(
        own(
            "next-token-at-the-end",
            NEXT,
            {"index == num_accepted[:, None]": "index == draft_tokens.shape[1]"},
            "The target's own token stands behind drafts that were rejected. Where does it stand when no draft is accepted?",
        ),
        own(
            "next-token-over-an-accepted-draft",
            NEXT,
            {"index == num_accepted[:, None]": "index == jnp.maximum(num_accepted[:, None] - 1, 0)"},
            "One accepted draft is missing: the target's own token replaces it. How many tokens has a round with one accepted "
            "draft?",
        ),
        known(
            "eos-looked-for-at-the-end-only",
            "A text went on behind its end. Where in a run can an end-of-text token stand?",
        ),
        known(
            "drafted-eos-ends-the-row",
            "A text ended at a token that was never emitted. Put an end-of-text token behind the tokens that count.",
        ),
        known(
            "budget-overshot",
            "More tokens than the budget. How many are left when a run of five begins at four to go?",
        ),
        known(
            "length-tested-before-eos",
            "Budget and end of text fall into one run, and the text went on behind its end. Which of the two comes first?",
        ),
        own(
            "done-row-goes-on",
            COUNT,
            {SHORTEST: "jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room)"},
            "A row that had ended emits again, beside one that had not.",
        ),
        own(
            "eos-left-out",
            COUNT,
            {"first_eos + 1": "jnp.maximum(first_eos, 1)", "(first_eos < num_emitted)": "(first_eos < num_tokens)"},
            "The end-of-text token itself is not emitted. What does the page say about it?",
        ),
        own(
            "one-eos-id",
            COUNT,
            {"jnp.asarray(eos_ids, jnp.int32)": "jnp.asarray(eos_ids, jnp.int32)[:1]"},
            "One kind of end-of-text token is overlooked. How many kinds may a model have?",
        ),
        known("no-rollback", "Rejected drafts stay in the cache. Let a round reject everything and print the length."),
        own(
            "rollback-forgets-the-first-token",
            ROLLBACK,
            {"jnp.asarray(num_kept)": "jnp.maximum(jnp.asarray(num_kept) - 1, 0)"},
            "The cache is one token short after each round. Which token did verify write first?",
        ),
        own(
            "newest-token-counted",
            ROLLBACK,
            {"jnp.asarray(num_kept)": "jnp.asarray(num_kept) + 1"},
            "The cache claims one token too many. Has the newest emitted token been written yet?",
        ),
        known(
            "hidden-of-row-zero",
            "The hidden state is always the first one. The text stays right, and acceptance falls: which input token predicted "
            "the newest token?",
        ),
        known(
            "hidden-of-the-last-row",
            "The hidden state is always the last one, that of a draft which may have been rejected. Which input token "
            "predicted the newest token?",
        ),
        known(
            "hidden-one-row-late",
            "The hidden state is one place late: it has already read the newest token, or a draft in its place. Which one "
            "predicted it?",
        ),
        known(
            "hidden-never-renewed",
            "The next round gets the hidden state that this round began with. What did this round learn?",
        ),
        own(
            "done-row-starts-anew",
            ADVANCE,
            {"newest = this_round.num_emitted - 1": "newest = jnp.maximum(this_round.num_emitted - 1, 0)"},
            "A row that was done takes over a token of this round. It emitted none.",
        ),
        own(
            "token-of-the-last-place",
            ADVANCE,
            {"_select_or_keep(this_round.tokens, newest, state.token)": "this_round.tokens[:, -1]"},
            "The newest token is taken from the end of the run, whatever was emitted. How long is a run after a rejection?",
        ),
    ),
    equivalents=(
        variant("tokens-by-comparison", NEXT, {"index == num_accepted[:, None]": "index >= num_accepted[:, None]"}),
        variant(
            "emitted-by-counting", COUNT, {"(num_emitted == room)": "(num_emitted >= room)"}
        ),
    ),
    removed=("decoding.state._select_or_keep",),
    rewritten={
        "decoding/round.py": {
            "    # The next round drafts from the newest token and from the hidden state that predicted it, number "
            "num_emitted - 1.\n": ""
        },
    },
)  # fmt: skip
