"""Wrong answers to the exercises of 02."""

import numpy as np


def back(tokens):
    return np.arange(tokens)[:, None] - np.arange(tokens)


def more(tokens, window):
    return (back(tokens) >= 0) & (back(tokens) <= window)


def attend(query, key, value, positions, turns_values, scale=1.0, turns=True):
    angles = positions[:, None] * 10_000.0 ** (-np.arange(32) / 32) * turns

    def turn(x):
        first, second = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    scores = np.where(np.tri(len(query), dtype=bool), turn(query) @ turn(key).T * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ (turn(value) if turns_values else value)


WRONG = {
    1: [(None,), (1,), (8,), (0,), (32,)],
    2: [
        (lambda tokens, window: None, []),
        (lambda tokens, window: (back(tokens) >= 0) & (back(tokens) < window), [0, 0, 1, 1]),
        (lambda tokens, window: back(tokens) <= window, [0, 0, 1, 1]),
        (more, []),
        (more, [0, 1, 1, 1]),
        (more, [1, 1, 1, 1]),
    ],
    3: [
        (lambda query, key, value, positions, turns_values: None,),
        (lambda *given: attend(*given, scale=64**-0.5),),
        (lambda query, key, value, positions, turns_values: attend(query, key, value, positions, False),),
        (lambda query, key, value, positions, turns_values: attend(query, key, value, np.arange(7), turns_values),),
        (lambda *given: attend(*given, turns=False),),
    ],
}
