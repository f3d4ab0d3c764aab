"""Wrong answers to the exercises of `09_train_a_drafter`."""

import jax


def unchanged(teacher, tokens):
    return teacher


def of_the_token_itself(teacher, tokens):
    return teacher._replace(probs=jax.nn.one_hot(tokens, teacher.probs.shape[-1]))


def of_the_argmax(teacher, tokens):
    return teacher._replace(probs=jax.nn.one_hot(teacher.probs.argmax(axis=-1), teacher.probs.shape[-1]))


WRONG = {
    1: [(1 / 2048,), (1.0,), (None,)],
    2: [(unchanged,), (of_the_token_itself,), (of_the_argmax,)],
    3: [(0.92,), (0.96,), (0.2,)],
}
