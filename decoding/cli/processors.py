"""The options that change the target's distribution by what was emitted, and the processors that they stand for."""

import argparse
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from decoding.processors import FrequencyPenalty, LogitBias, MinP, Processor, RepetitionPenalty, logit_bias


def add_options(command: argparse.ArgumentParser) -> None:
    number = functools.partial(command.add_argument, type=float)
    number(
        "--min-p", metavar="P", help="keep tokens at least P times as probable as the most probable one, over 0 to 1"
    )
    number("--repetition-penalty", metavar="X", help="divide logits of earlier tokens by X (multiply negative ones)")
    number("--frequency-penalty", metavar="X", help="subtract X from a logit for each time the token was there before")
    number("--presence-penalty", metavar="X", help="subtract X from a logit if the token was there before")
    command.add_argument(
        "--logit-bias",
        metavar="ID=X",
        action="append",
        default=[],
        help="add X to the logit of this id; may be repeated",
    )


def processors_of(args: argparse.Namespace) -> tuple[Processor, ...]:
    """In the order in which they apply: penalties, bias, min-p.  Errors: ValueError that names the option."""
    found: list[Processor] = []
    if (penalty := args.repetition_penalty) is not None:
        _check("--repetition-penalty", penalty, "a number over 0 (1 changes nothing)", 0 < penalty < math.inf)
        found.append(RepetitionPenalty(penalty))
    given = args.frequency_penalty, args.presence_penalty
    for name, value in zip(("--frequency-penalty", "--presence-penalty"), given, strict=True):
        _check(name, value or 0.0, "a finite number", math.isfinite(value or 0.0))
    if given != (None, None):
        found.append(FrequencyPenalty(*(value or 0.0 for value in given)))
    if args.logit_bias:
        found.append(logit_bias(dict(map(_bias, args.logit_bias))))
    if args.min_p is not None:
        _check("--min-p", args.min_p, "a number over 0 and up to 1", 1e-30 <= args.min_p <= 1)
        found.append(MinP(args.min_p))
    return tuple(found)


def check_bias(processors: Sequence[Any], vocabulary: int) -> None:
    """Errors: ValueError for the bias of an id that no logit has."""
    for processor in processors:
        if isinstance(processor, LogitBias) and (largest := int(np.max(processor.ids))) >= vocabulary:
            raise ValueError(
                f"--logit-bias: expected ids of this model's vocabulary, 0..{vocabulary - 1}, got {largest}"
            )


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not re.fullmatch("[0-9]{1,9}", token.strip()) or math.isnan(number) or abs(number) > 1e30:
        raise ValueError(
            f"--logit-bias: expected an id and a number of at most 1e30, such as 17=-2.5, got {text!r:.80}"
        )
    return int(token), number


def _check(name: str, value: float, expected: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value:g}")
