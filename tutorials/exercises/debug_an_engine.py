"""The checks of `10_debug_an_engine`."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from decoding.oracle.cases import CASES
from decoding.oracle.diagnose import evidence, reference, under
from decoding.oracle.engine import Engine
from decoding.oracle.golden import Dump, dump, read_dump
from decoding.oracle.known_bugs import EQUIVALENT, MUTANTS
from decoding.oracle.live import check_engine
from exercises import say

CASE = "12B"
MISTAKES = ("rope-turns-every-pair", "layer-scalar-dropped", "attention-not-normed-behind")
STATEMENTS = {
    "a": "draft-matched-with-the-targets-sample",
    "b": "sample-match-with-a-fresh-correction",
    "c": "attention-scale-folded-into-the-query",
    "d": "residual-by-softmax",
    "e": "softmax-before-top-k",
    "f": "accept-the-targets-argmax-only",
}
assert all(name in EQUIVALENT or name in MUTANTS for name in STATEMENTS.values())


def check_1(first_tensor: dict[str, str]) -> bool:
    """first_tensor: for each of the three mistakes, the first tensor of the pass that differs."""
    if set(first_tensor) != set(MISTAKES):
        return say("10.1", False, f"give a tensor for each of {', '.join(MISTAKES)}.")
    given = {name: str(tensor).removeprefix("forward/") for name, tensor in first_tensor.items()}
    known = {name.split("/", 2)[2] for name in reference(CASE, "forward").tensors}
    for tensor in given.values():
        if tensor not in known:
            return say("10.1", False, f"names of tensors are like layers.1.mlp, and none is {tensor!r}.")
    wrong = [name for name, tensor in given.items() if shows_first_at(name) != tensor]
    if wrong:
        return say(
            "10.1", False, f"ask of {wrong[0]} which function computes your tensor, and whether an earlier one has it."
        )
    return say(
        "10.1", True, "the first tensor is the first one that the wrong line touches, not the one that it spoils most."
    )


def shows_first_at(mistake: str) -> str:
    first = evidence(under(MUTANTS[mistake], CASE, "forward"), (CASE, "forward")).first
    assert first is not None
    return first.split("/", 2)[2]


@functools.cache
def golden() -> Dump:
    directory = Path(tempfile.mkdtemp()) / "golden"
    dump(directory, [CASE], ["forward", "law", "accept"])
    return read_dump(directory)


def check_2(engine_class: type[Engine]) -> bool:
    """engine_class: is built from the target's directory, like `SickEngine`."""
    engine = engine_class(golden().directory / CASE / "target")
    ours = engine.forward(CASES[CASE].inputs()["forward/tokens"])["logits"].argmax(axis=-1)
    changed = int(np.sum(ours != golden().expected(CASE)[f"{CASE}/forward/logits"].argmax(axis=-1)))
    if changed:
        return say(
            "10.2", False, f"the best token is another one at {changed} positions, so greedy text would show it."
        )
    report = check_engine(golden(), lambda target, drafter, convention: engine_class(target))
    if report.agrees:
        return say(
            "10.2", False, "the oracle finds no difference: is anything computed otherwise, by more than rounding?"
        )
    return say("10.2", True, "greedy text would never tell, and the oracle does.")


def check_3(letters: str) -> bool:
    """letters: of the three engines that keep the target's distribution."""
    given = set(letters.replace(",", "").replace(" ", "").lower())
    if not given <= STATEMENTS.keys() or len(given) != 3:
        return say("10.3", False, f"three letters of {', '.join(STATEMENTS)}.")
    right = sum(STATEMENTS[letter] in EQUIVALENT for letter in given)
    if right < 3:
        return say("10.3", False, f"{right} of your three are right; try all of them by hand on p = (0.6, 0.4).")
    return say("10.3", True, "another way to the same number, or to the same distribution, is no bug.")
