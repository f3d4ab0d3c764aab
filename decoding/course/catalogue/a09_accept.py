"""Assignment 09: accept and reject."""

import itertools
from collections.abc import Sequence

import numpy as np

from decoding.course.assignment import Assignment, Call, Check, Cut, Hole, Outputs, cleaned, known, own
from decoding.course.catalogue.inputs import distributions, drawn, float32, int32, one_hot, uniforms
from decoding.oracle.known_bugs import EQUIVALENT

DECIDE, RESIDUAL = "decoding.stages.accept.decide", "decoding.stages.accept.residual"


# -- inputs ------------------------------------------------------------------------------------------------------------


# Most calls have one size, so that the reference is compiled for few.
BATCH, GAMMA, VOCABULARY = 32, 3, 7


def rows(
    rng: np.random.Generator, about: str, *, batch: int = BATCH, gamma: int = GAMMA, closeness: float = 0.5
) -> Call:
    """Rows in which the drafter's distribution is often the target's, and otherwise another one."""
    p = distributions(rng, (batch, gamma + 1), VOCABULARY)
    q = distributions(rng, (batch, gamma), VOCABULARY)
    q = np.where(rng.random((batch, gamma, 1)) < closeness, p[:, :-1], q)
    return Call("decide", arguments(rng, p, q), about)


def arguments(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> dict:
    batch, gamma = q.shape[:2]
    return {
        "target_probs": p,
        "draft_tokens": drawn(rng, q),
        "draft_probs": q,
        "uniforms": uniforms(rng, (batch, gamma + 1)),
    }


def example(rng: np.random.Generator) -> list[Call]:
    p = float32([[[8, 4, 2, 2], [4, 4, 4, 4], [2, 2, 4, 8]], [[4, 8, 2, 2], [2, 2, 4, 8], [8, 4, 2, 2]]]) / 16
    q = float32([[[4, 8, 2, 2], [4, 4, 4, 4]], [[8, 2, 4, 2], [1, 1, 12, 2]]]) / 16
    tokens, u = int32([[0, 3], [0, 2]]), float32([[7, 3, 5], [11, 1, 13]]) / 16
    given = {"target_probs": p, "draft_tokens": tokens, "draft_probs": q, "uniforms": u}
    return [
        Call("residual", {"target_probs": p[0, 0], "draft_probs": q[0, 0]}, "one pair of distributions"),
        Call("decide", given, "the page's two rows"),
    ]


def random(rng: np.random.Generator) -> list[Call]:
    p, q = (distributions(rng, (BATCH,), VOCABULARY) for _ in range(2))
    return [
        Call("residual", {"target_probs": p, "draft_probs": q}, "pairs of distributions"),
        rows(rng, "rows of three drafts over seven tokens"),
        rows(rng, "drafts that are mostly good", closeness=0.8),
    ]


def values(rng: np.random.Generator) -> list[Call]:
    p, q = (distributions(rng, (BATCH,), VOCABULARY) for _ in range(2))
    shape = (BATCH, GAMMA + 1)
    greedy_p, greedy_q = distributions(rng, shape, VOCABULARY), distributions(rng, (BATCH, GAMMA), VOCABULARY)
    greedy_drafts = arguments(rng, greedy_p, one_hot(drawn(rng, greedy_q), VOCABULARY))
    greedy_target = arguments(rng, one_hot(drawn(rng, greedy_p), VOCABULARY), greedy_q)
    edge = rows(rng, "uniform numbers that are zero")
    edge.arguments["uniforms"] = np.where(rng.random(shape) < 0.6, 0, edge.arguments["uniforms"]).astype(np.float32)
    return [
        Call("residual", {"target_probs": p, "draft_probs": q}, "pairs of distributions"),
        Call("residual", {"target_probs": p, "draft_probs": p}, "a drafter that equals the target"),
        Call("residual", {"target_probs": p, "draft_probs": np.zeros_like(p)}, "places where nothing was proposed"),
        rows(rng, "several drafts"),
        rows(rng, "drafts that are mostly good", closeness=0.8),
        rows(rng, "a single draft", gamma=1),
        Call("decide", greedy_drafts, "greedy drafts"),
        Call("decide", greedy_target, "a greedy target"),
        edge,
    ]


ALONE = 4  # rows


# -- the law, by enumeration -------------------------------------------------------------------------------------------

# Every ratio p/q and every running sum is a multiple of one part of the grid, so counting its midpoints is exact.
LAWS = {
    1: (np.array([3, 3, 1, 1]) / 8, np.array([1, 1, 2, 4]) / 8, 8),
    2: (np.array([3, 1]) / 4, np.array([2, 2]) / 4, 4),
}


def at_prefix(probs: np.ndarray, prefix: tuple[int, ...]) -> np.ndarray:
    """The distribution after a prefix: another one for each sum of its tokens."""
    return np.roll(probs, sum(prefix))


def law(rng: np.random.Generator) -> list[Call]:
    calls = []
    for gamma, (p, q, parts) in LAWS.items():
        drafts = list(itertools.product(range(len(p)), repeat=gamma))
        points = (np.array(list(itertools.product(range(parts), repeat=gamma + 1))) + 0.5) / parts
        target = np.stack([[at_prefix(p, d[:i]) for i in range(gamma + 1)] for d in drafts])
        drafter = np.stack([[at_prefix(q, d[:i]) for i in range(gamma)] for d in drafts])
        each, other = len(points), len(drafts)
        given = {
            "target_probs": np.repeat(target, each, axis=0).astype(np.float32),
            "draft_tokens": np.repeat(int32(drafts), each, axis=0),
            "draft_probs": np.repeat(drafter, each, axis=0).astype(np.float32),
            "uniforms": np.tile(points, (other, 1)).astype(np.float32),
        }
        calls.append(Call("decide", given, f"all drafts of {gamma} and all uniform numbers of a grid"))
    return calls


def emitted_law(call: Call, outputs: Outputs) -> np.ndarray | None:
    """The joint distribution of gamma + 1 tokens: those that are emitted, completed by the target.  None for no result."""
    tokens, q = call.arguments["draft_tokens"], call.arguments["draft_probs"].astype(np.float64)
    (count, gamma), vocabulary = tokens.shape, q.shape[-1]
    p, _, parts = LAWS[gamma]
    kept, following = outputs
    if (
        kept.shape != (count,)
        or following.shape != (count,)
        or kept.dtype.kind not in "iu"
        or following.dtype.kind not in "iu"
    ):
        return None
    if not ((0 <= kept) & (kept <= gamma) & (0 <= following) & (following < vocabulary)).all():
        return None
    weight = np.take_along_axis(q, tokens[..., None], axis=2)[..., 0].prod(axis=1) / parts ** (gamma + 1)
    joint = np.zeros((vocabulary,) * (gamma + 1))
    for row in range(count):
        run = (*map(int, tokens[row, : kept[row]]), int(following[row]))
        joint[run] += weight[row] * completed(p, run, gamma + 1 - len(run))
    return joint


def completed(p: np.ndarray, prefix: tuple[int, ...], length: int) -> np.ndarray:
    if length == 0:
        return np.ones(())
    rest = [completed(p, (*prefix, token), length - 1) for token in range(len(p))]
    return np.stack([share * each for share, each in zip(at_prefix(p, prefix), rest, strict=True)])


def judge_law(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    for call, output in zip(calls, outputs, strict=True):
        gamma = call.arguments["draft_tokens"].shape[1]
        joint = emitted_law(call, output)
        if joint is None:
            return "num_accepted or next_token is out of range, or has another shape than one whole number a batch row"
        distance = np.abs(joint - completed(LAWS[gamma][0], (), gamma + 1)).sum() / 2
        if distance > 1e-6:
            return (
                f"over {call.about}, the distribution of the emitted tokens is not the target's: "
                f"their total variation is {distance:.3f}, and should be 0"
            )
    return None


def alone(rng: np.random.Generator) -> list[Call]:
    """The same rows in one call, and three of them in calls of their own."""
    together = rows(rng, "rows together")
    each = [
        Call("decide", {name: value[i : i + 1] for name, value in together.arguments.items()}, f"row {i} alone")
        for i in range(ALONE)
    ]
    identical = distributions(rng, (BATCH, GAMMA + 1), VOCABULARY)
    return [
        together,
        *each,
        Call("decide", arguments(rng, identical, identical[:, :-1]), "a drafter that equals the target"),
    ]


def judge_alone(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    together, *each, identical = outputs
    for place, name in enumerate(("num_accepted", "next_token")):
        if together[place].shape != (BATCH,) or any(one[place].shape != (1,) for one in each):
            return f"{name} should be one whole number for each batch row"
        if not np.array_equal(together[place][:ALONE], np.concatenate([one[place] for one in each])):
            return f"{name} of a batch row depends on the rows beside it"
    if identical[0].shape != (BATCH,) or not (identical[0] == GAMMA).all():
        return "a drafter whose distribution is the target's has drafts rejected"
    probs = calls[-1].arguments["target_probs"][:, GAMMA]
    if (probs[np.arange(BATCH), identical[1].astype(int) % VOCABULARY] == 0).any():
        return "a token is emitted that the target calls impossible"
    return None


# -- the record --------------------------------------------------------------------------------------------------------


ASSIGNMENT = Assignment(
    number="09",
    slug="accept",
    title="Accept and reject",
    question="How can drafts of a small model be used without changing the distribution of the text?",
    hours=4,
    read=("decoding/stages/verify.py", "glossary.md: verify, bonus token, lossless, total variation"),
    task=cleaned(
        """
        A drafter proposed γ tokens.  Draft number i was drawn from its distribution `draft_probs[:, i]`.  The target then
        computed its own distribution at each of these places, and at one more.  Your functions decide how many drafts stay,
        and which token of the target's own follows them.  The emitted tokens must follow the target's distribution exactly,
        whatever the drafter proposes, and as many drafts as that allows are to stay when each is judged by itself.

        Uniform numbers are given, so that your results can be compared: number i decides about draft i, and the last one draws
        the next token.  A token is drawn from weights as the one at which their running sum, over ascending ids, first exceeds
        the uniform number times the weights' total.
        """
    ),
    by_hand="Prove in at most eight lines that the first emitted token follows the target's distribution.",
    hints=(
        "Take two tokens, p = (0.5, 0.5) and q = (0.9, 0.1). How often is token 0 drafted, and how often may it be emitted?",
        "Draw both distributions as bars on one axis. Which area can drafts fill, and who has to fill the rest?",
        "Leviathan et al. 2023 (arXiv 2211.17192), section 2.3. Their p is the target's distribution.",
    ),
    holes=(
        Hole(
            name="decide",
            function=DECIDE,
            signature="(target_probs, draft_tokens, draft_probs, uniforms)",
            docstring=cleaned(
                """
                How many drafts stay, and the token after them.

                target_probs: float32 [b, gamma + 1, v], the target's distribution at each place.
                draft_tokens: int32 [b, gamma].
                draft_probs:  float32 [b, gamma, v], the distribution that each draft was drawn from.
                uniforms:     float32 [b, gamma + 1] in [0, 1): number i decides about draft i, the last one draws the next
                              token.
                Returns:      num_accepted int [b], 0 .. gamma, and next_token int [b].
                """
            ),
            outputs=("num_accepted", "next_token"),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                like = draft_tokens[:, 0]
                return Acceptance(*solve("09 decide", target_probs, draft_tokens, draft_probs, uniforms, like=(like, like)))
                """
            ),
        ),
        Hole(
            name="residual",
            function=RESIDUAL,
            signature="(target_probs, draft_probs)",
            docstring=cleaned(
                """
                Weights to draw the next token from where a draft was rejected.

                target_probs, draft_probs: float32 [..., v].
                Returns: float32 [..., v]; they need not sum to 1.  Where both distributions are equal there is nothing to
                correct: the target's distribution itself.
                """
            ),
            outputs=("weights",),
            is_up_to_scale=True,
            body=cleaned(
                """
                from decoding.course.delegate import solve

                return solve("09 residual", target_probs, draft_probs, like=target_probs)
                """
            ),
        ),
    ),
    checks=(
        Check(name="example", what="the page's example", points=1, calls=example, is_public=True),
        Check(name="random", what="random rows", points=1, calls=random, is_public=True),
        Check(name="values", what="one and several drafts, greedy ones, zeros, a batch of one", points=3, calls=values),
        Check(
            name="law",
            what="by enumeration, the emitted tokens follow the target's distribution",
            points=3,
            calls=law,
            judge=judge_law,
        ),
        Check(
            name="rows",
            what="batch rows are independent, and a drafter that equals the target has all drafts accepted",
            points=1,
            calls=alone,
            judge=judge_alone,
        ),
    ),
    misconceptions=(
        known(
            "ratio-upside-down",
            "Drafts that the target likes better than the drafter are rejected most. Feed one draft that the target gives 0.9 "
            "and the drafter 0.1: should it ever be refused?",
        ),
        known(
            "residual-forgotten",
            "After a rejection you may emit the very token that was rejected, and words that the drafter overrates come too "
            "often. Over all uniform numbers, how often does each word come out?",
        ),
        known(
            "residual-by-softmax",
            "After a rejection, tokens appear on which target and drafter agree exactly. How much of those is still owed?",
        ),
        known(
            "residual-after-full-acceptance",
            "Accept every draft and look at the token after them: whose distribution should it have when nobody proposed "
            "anything there?",
        ),
        known(
            "accept-the-targets-argmax-only",
            "No uniform number makes you accept a draft that is unlikely for the target. How then would such a word ever come "
            "out as often as it should?",
        ),
        known(
            "one-uniform-for-all-drafts",
            "The verdicts of one round move together. Give all drafts the same odds: how often should exactly one of two stay?",
        ),
        known(
            "accepted-after-a-rejection",
            "A draft behind a rejected one was counted. In which context was it proposed?",
        ),
        known(
            "batch-accepts-the-minimum",
            "Add a second batch row whose first draft fails: your first row changes.",
        ),
        known(
            "sample-match-with-a-fresh-correction",
            "Each verdict alone looks right, the pair of verdict and next token does not. After a refusal, which tokens can "
            "the refused comparison not have been about?",
        ),
        own(
            "not-renormalised",
            DECIDE,
            {
                "kernels.sample_from(residual(p_there, q_there), uniforms[:, -1])": "jnp.argmax(jnp.cumsum(residual(p_there, "
                "q_there), axis=-1) > uniforms[:, -1:], axis=-1).astype(jnp.int32)"
            },
            "After a rejection your last token is an extreme id far too often. What does your running sum reach?",
        ),
        own(
            "next-token-from-the-last-place",
            DECIDE,
            {"p_there = select_position(target_probs, num_accepted)": "p_there = target_probs[:, -1]"},
            "The next token is right when every draft stays, and otherwise drawn from a place that assumes drafts which were "
            "refused. After which tokens will it stand?",
        ),
        own(
            "impossible-draft-accepted",
            DECIDE,
            {"uniforms[:, :-1] * q < p": "uniforms[:, :-1] * q <= p"},
            "A draft that the target calls impossible can be accepted. It needs one special uniform number: which?",
        ),
        own(
            "nothing-left-over",
            RESIDUAL,
            {"jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, target_probs)": "rest"},
            "Where target and drafter agree exactly, your weights are all zero. Can a token be drawn from them?",
        ),
        known(
            "draft-matched-with-the-targets-sample",
            "The distribution of your text is right. The uniform numbers are used in another way than the page says, so "
            "single results differ, and fewer drafts stay than may.",
        ),
    ),
    equivalents=(EQUIVALENT["ratio-as-a-division"], EQUIVALENT["residual-renormalised"]),
    cuts=(
        Cut(
            function="decoding.stages.accept.accept_greedy",
            docstring="`accept` where the target's distribution is one-hot, for every uniform number.",
            body=cleaned(
                """
                vocabulary = target_logits.shape[-1]
                target_probs = jax.nn.one_hot(kernels.argmax(target_logits), vocabulary)
                draft_probs = jax.nn.one_hot(draft_tokens, vocabulary)
                uniforms = jnp.full((len(draft_tokens), draft_tokens.shape[1] + 1), 0.5, jnp.float32)
                return decide(target_probs, draft_tokens, draft_probs, uniforms, kernels)
                """
            ),
        ),
        *(
            Cut(
                function=f"decoding.stages.accept_block.{name}",
                docstring="Left out.",
                body='from decoding.course.delegate import left_out\n\nleft_out("block verification")',
            )
            for name in ("decide_block", "run_weights")
        ),
    ),
    terms=("rejection sampling", "residual distribution"),
    removed=tuple(f"decoding.stages.accept.{name}" for name in ("probs_of", "count_leading", "pad_with_zero")),
    rewritten={
        "decoding/stages/accept_block.py": {
            "check_shapes, pad_with_zero, probs_of, residual, uniforms_for": "check_shapes, uniforms_for"
        },
    },
)
