"""Assignment 06: draft, a chain of draft steps."""

import inspect
import unittest.mock
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from decoding.course.assignment import Assignment, Call, Check, Hole, Outputs, cleaned, known, own, variant
from decoding.course.given import Given, Tiny
from decoding.sampling import REFERENCE, Sampling
from decoding.stages import draft as draft_module

DRAFT = "decoding.stages.draft.draft"
BATCH, LONGEST = 4, 3


class TinyDrafter:
    """What the reference's `draft` needs of its two models, from the functions that students are given."""

    def __init__(self, embed: Callable, step: Callable, probs: Callable):
        self.embed_tokens, self.step, self.probs = Embedding(embed), step, probs

    def logits(self, normed: jax.Array) -> jax.Array:
        return jnp.log(jnp.asarray(self.probs(normed)))


class Embedding:
    weight = np.zeros(1, np.float32)  # its dtype is the drafter's

    def __init__(self, embed: Callable):
        self.embed = embed

    def __call__(self, token: jax.Array) -> jax.Array:
        return jnp.asarray(self.embed(token))


def reference_draft(
    embed: Given, step: Given, probs: Given, choose: Given, token: np.ndarray, hidden: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's stage on the tiny drafter, with these uniform numbers in place of drawn ones."""
    tiny = TinyDrafter(*(getattr(Tiny(given.seed), given.name) for given in (embed, step, probs)))
    given_numbers = unittest.mock.patch.object(draft_module, "draw_uniforms", lambda *_, **__: jnp.asarray(uniforms))
    step_of = unittest.mock.patch.object(
        draft_module,
        "step",
        lambda model, embedding, hidden, shared: tuple(map(jnp.asarray, model.step(embedding, hidden))),
    )
    plain_draw = unittest.mock.patch.object(draft_module, "_draw", inspect.unwrap(draft_module._draw))
    with given_numbers, step_of, plain_draw:
        drafted = inspect.unwrap(draft_module.draft)(
            tiny, tiny, jnp.asarray(token), jnp.asarray(hidden), None, None,
            draft_length=len(uniforms), sampling=Sampling(1.0), kernels=REFERENCE,
        )  # fmt: skip
    return np.asarray(drafted.tokens), np.asarray(drafted.probs)


# -- inputs ------------------------------------------------------------------------------------------------------------


def drafts(rng: np.random.Generator, about: str, length: int = LONGEST, batch: int = BATCH) -> Call:
    seed = int(rng.integers(1000))
    given = {name: Given(name, seed) for name in ("embed", "step", "probs", "choose")}
    arrays = {
        "token": rng.integers(0, Tiny.vocabulary, batch).astype(np.int32),
        "hidden": rng.normal(0, 1, (batch, Tiny.width)).astype(np.float32),
        "uniforms": rng.uniform(0.02, 0.98, (length, batch)).astype(np.float32),
    }
    return Call("draft", {**given, **arrays}, about)


def example(rng: np.random.Generator) -> list[Call]:
    return [drafts(np.random.default_rng(6), "three drafts in four rows")]


def random(rng: np.random.Generator) -> list[Call]:
    return [drafts(rng, "three drafts in four rows")]


def values(rng: np.random.Generator) -> list[Call]:
    return [
        drafts(rng, "three drafts in four rows"),
        drafts(rng, "another drafter"),
        drafts(rng, "a single draft", length=1),
        drafts(rng, "a batch of one", batch=1),
    ]


def prefix(rng: np.random.Generator) -> list[Call]:
    longer = drafts(rng, "three drafts")
    return [
        longer,
        Call("draft", {**longer.arguments, "uniforms": longer.arguments["uniforms"][:1]}, "the first of them alone"),
    ]


def judge_prefix(calls: Sequence[Call], outputs: Sequence[Outputs]) -> str | None:
    (tokens, probs), (first_token, first_probs) = outputs
    shape = (BATCH, LONGEST)
    if tokens.shape != shape or probs.shape != (*shape, Tiny.vocabulary) or first_token.shape != (BATCH, 1):
        return "tokens should be [b, gamma], and the distributions [b, gamma, v]"
    if not np.array_equal(tokens[:, :1], first_token) or not np.allclose(probs[:, :1], first_probs, atol=1e-5):
        return "the first draft depends on how many follow it"
    if not np.allclose(probs.sum(axis=-1), 1, atol=1e-4):
        return "what is returned as a distribution does not sum to 1"
    uniforms = calls[0].arguments["uniforms"].T
    running = np.cumsum(probs.astype(np.float64), axis=-1)
    drawn = tokens[..., None].astype(int)
    upper = np.take_along_axis(running, drawn, axis=-1)[..., 0]
    lower = upper - np.take_along_axis(probs, drawn, axis=-1)[..., 0]
    if (uniforms > upper + 1e-4).any() or (uniforms < lower - 1e-4).any():
        return "a draft was not drawn from the distribution that is returned for it"
    return None


ASSIGNMENT = Assignment(
    number="06",
    slug="draft",
    title="Draft",
    question="How does a drafter that sees one token at a time guess several?",
    hours=3,
    read=("drafter/model.py", "glossary.md: draft, draft length, hidden state, distribution"),
    task=cleaned(
        """
        A drafter proposes γ tokens to follow the newest one, a step each.  A step reads the target's embedding of a token and a
        hidden state.  The first step gets the newest token, and the target's hidden state that predicted it.  The drafter
        returns a hidden state of its own, made for this use.

        Acceptance is exact only if it is told the distribution that each draft was drawn from.
        """
    ),
    by_hand="Acceptance falls from draft to draft. Name two reasons, and say which of them more training could help.",
    hints=(
        "Write the first two steps without a loop. What of the first does the second need?",
        "Which of the four given functions is called how often for γ drafts?",
        "How would acceptance notice that you told it another distribution than you drew from?",
    ),
    holes=(
        Hole(
            name="draft",
            function=DRAFT,
            signature="(embed, step, probs, choose, token, hidden, uniforms)",
            docstring=cleaned(
                """
                Propose gamma tokens to follow `token`.

                Given functions: embed(token [b]) -> [b, d]; step(embedding [b, d], hidden [b, d]) -> two arrays [b, d], a
                vector for the head and the drafter's hidden state; probs(vector [b, d]) -> the distribution [b, v];
                choose(probs [b, v], uniforms [b]) -> tokens [b], drawn from it.

                token:    int32 [b], the newest token; hidden: float32 [b, d], the target's hidden state that predicted it.
                uniforms: float32 [gamma, b], a number for each draft and row.
                Returns:  tokens int [b, gamma], and the distribution that each was drawn from, float32 [b, gamma, v].
                """
            ),
            outputs=("tokens", "draft_probs"),
            body=cleaned(
                """
                from decoding.course.delegate import solve

                vocabulary, batch = draft_model.config.text.vocab_size, token.shape[0]

                def probs_of(vector: Array) -> Array:
                    if sampling.is_greedy:
                        return jax.nn.one_hot(draft_model.argmax(vector), vocabulary)
                    return token_probs(draft_model.logits(vector), sampling, kernels)

                def step_of(embedding: Array, state: Array) -> tuple[Array, Array]:
                    return step(draft_model, embedding, state, shared)

                numbers = draw_uniforms(key, (draft_length, batch), row_axis=1)
                like = jnp.zeros((batch, draft_length), jnp.int32), jnp.zeros((batch, draft_length, vocabulary))
                return Draft(
                    *solve(
                        "06 draft", target.embed_tokens, step_of, probs_of, kernels.sample_from, token, hidden, numbers,
                        like=like,
                    )
                )  # fmt: skip
                """
            ),
            reference=reference_draft,
        ),
    ),
    checks=(
        Check(name="example", what="the page's example", points=1, calls=example, is_public=True),
        Check(name="random", what="one random drafter", points=1, calls=random, is_public=True),
        Check(name="values", what="other drafters, a single draft, a batch of one", points=5, calls=values),
        Check(
            name="chain",
            what="the first draft is the same however many follow, and each is drawn from the distribution returned for it",
            points=2,
            calls=prefix,
            judge=judge_prefix,
        ),
    ),
    misconceptions=(
        known(
            "hidden-not-chained",
            "The first draft is right, the second is not. What should the second step know that the first one found out?",
        ),
        own(
            "first-token-forever",
            DRAFT,
            {
                "step(draft_model, target.embed_tokens(token), hidden": "step(draft_model, target.embed_tokens(first), hidden",
                "    # A scan needs one dtype": "    first = token\n    # A scan needs one dtype",
            },
            "The first draft is right, and the second is drawn as if the first had not happened.",
        ),
        own(
            "vector-for-the-head-handed-on",
            DRAFT,
            {"normed, hidden = step(": "normed, _ = step(", "return (token, hidden), Draft": "return (token, normed), Draft"},
            "A step returns two vectors, and the next one gets the wrong one of them. Which is made for the head?",
        ),
        own(
            "one-uniform-for-all-steps",
            DRAFT,
            {"uniforms = draw_uniforms(key, (draft_length, token.shape[0]), row_axis=1)": "uniforms = jnp.broadcast_to("
             "draw_uniforms(key, (draft_length, token.shape[0]))[:1], (draft_length, token.shape[0]))"},
            "All drafts of a row are drawn with one number. Draft twice from the same distribution: are the two independent?",
        ),
        own(
            "one-uniform-for-all-rows",
            DRAFT,
            {"uniforms = draw_uniforms(key, (draft_length, token.shape[0]), row_axis=1)": "uniforms = jnp.broadcast_to("
             "draw_uniforms(key, (draft_length, token.shape[0]))[:, :1], (draft_length, token.shape[0]))"},
            "All batch rows are drawn with one number. Give two rows the same text: must they go the same way?",
        ),
        own(
            "first-draft-is-the-token",
            DRAFT,
            {"Draft(token, probs)\n\n": "Draft(newest[0], probs)\n\n"},
            "The first draft is the token that was given. What is asked for is what follows it.",
        ),
        known(
            "sampled-draft-taken-greedily",
            "You draft the same token for every random number, and tell a distribution with many.",
        ),
        own(
            "drawn-draft-told-as-certain",
            "decoding.stages.draft._draw",
            {"return kernels.sample_from(probs, uniforms), probs": "token = kernels.sample_from(probs, uniforms)\n    "
             "return token, jax.nn.one_hot(token, probs.shape[-1])"},
            "You tell acceptance that no other draft was possible. Draw again with another number: does another one come?",
        ),
        own(
            "steps-before-rows",
            DRAFT,
            {"return jax.tree.map(lambda steps: jnp.moveaxis(steps, 0, 1), drafted)": "return drafted"},
            "Your results have the steps first and the batch rows second. Compare their shapes with the page.",
        ),
        own(
            "last-hidden-for-every-row",
            DRAFT,
            {"normed, hidden = step(draft_model, target.embed_tokens(token), hidden, shared)": "normed, hidden = step("
             "draft_model, target.embed_tokens(token), jnp.broadcast_to(hidden[-1:], hidden.shape), shared)"},
            "All batch rows start from one row's hidden state. Reorder the rows: do the results follow?",
        ),
    ),
    equivalents=(
        variant("axes-swapped", DRAFT, {"jnp.moveaxis(steps, 0, 1)": "jnp.swapaxes(steps, 0, 1)"}),
    ),
    removed=("decoding.stages.draft._draw",),
    excused={
        f"draft_model.embed_tokens{part}": "the drafter's table, which others read for its dtype or its rows"
        for part in ("", ".weight", ".weight[...]")
    },
)  # fmt: skip
