"""The checks of `09_train_a_drafter`, and one step of the optimizer."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drafter import Drafter
from drafter.training import Teacher, draft_loss
from exercises import say
from gemma4.checkpoints.params import named_params, with_params

Params = dict[str, jax.Array]


def with_weights(model: Drafter, params: Params) -> Drafter:
    return with_params(model, named_params(model) | params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def one_step(
    optimizer: optax.GradientTransformation,
    unrolled: int,
    model: Drafter,
    params: Params,
    state: optax.OptState,
    rows: jax.Array,
    teacher: Teacher,
) -> tuple[Params, optax.OptState]:
    """The weights and the optimizer's state after one step on some rows of the teacher's texts."""
    batch = jax.tree.map(lambda array: array[rows], teacher)
    gradients = jax.grad(lambda params: draft_loss(with_weights(model, params), batch, unrolled))(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def check_1(probability: float | None) -> bool:
    """Of acceptance, with a flat drafter."""
    if probability is None or not 0 <= probability <= 1:
        return say("9.1", False, "give a probability.")
    expected = np.minimum([0.5, 0.3, 0.2], 1 / 2048).sum()
    if abs(probability - expected) > 1e-4:
        return say("9.1", False, "which tokens can be accepted at all, and how often are they drafted?")
    return say(
        "9.1", True, "a flat drafter is accepted as often as the target has tokens to choose from, over the vocabulary."
    )


def check_2(text_teacher: Callable[[Teacher, jax.Array], Teacher]) -> bool:
    """text_teacher(teacher, tokens) -> the teacher with one-hot distributions."""
    rng = np.random.default_rng(9)
    tokens = jnp.asarray(rng.integers(0, 11, (3, 7)))
    given = Teacher(jnp.ones((3, 7, 5)), jnp.ones((3, 7, 5)), jnp.asarray(rng.dirichlet(np.ones(11), (3, 7))), {})
    found = text_teacher(given, tokens)
    if not isinstance(found, Teacher) or found.probs.shape != given.probs.shape:
        return say("9.2", False, "return a Teacher whose `probs` have the shape that they had.")
    probs = np.asarray(found.probs[:, :-1], np.float64)
    if np.abs(probs.sum(axis=-1) - 1).max() > 1e-5 or np.abs(probs.max(axis=-1) - 1).max() > 1e-5:
        return say("9.2", False, "each distribution should have a single token with probability 1.")
    if (probs.argmax(axis=-1) != np.asarray(tokens[:, 1:])).any():
        return say("9.2", False, "the token with probability 1 is not the one that follows the position.")
    return say("9.2", True, "one token where the target had many in mind.")


def check_3(probability: float | None) -> bool:
    """The least probability of acceptance."""
    if probability is None or not 0 <= probability <= 1:
        return say("9.3", False, "give a probability.")
    if abs(probability - (1 - np.sqrt(0.08 / 2))) > 0.006:
        return say("9.3", False, "what has the total variation to do with Σ min(p, q)?")
    return say("9.3", True, "the loss bounds acceptance, and two drafters of equal loss may differ in it.")
