"""The tiny layouts that tests use: those of the oracle, under the name that tests know them by."""

from decoding.oracle.tiny import (
    TINY,
    TINY_DRAFTERS,
    VOCAB,
    WINDOW,
    drafter_config,
    random_drafter,
    random_target,
    random_tokens,
)

__all__ = [
    "TINY",
    "TINY_DRAFTERS",
    "VOCAB",
    "WINDOW",
    "drafter_config",
    "random_drafter",
    "random_target",
    "random_tokens",
]
