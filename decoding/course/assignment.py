"""What an assignment is: a record.  Everything that students and graders get is made from it and from the reference.

A hole is a function of the reference that students write.  A check calls their functions and judges what comes back.  A
misconception is a change of the reference's text, with the sentence that a student is told who made that mistake.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from decoding.oracle.known_bugs import EQUIVALENT, MUTANTS
from decoding.oracle.known_bugs.mutant import Variant, locate

Arguments = dict[str, Any]  # arrays, numbers, None; or a `given.Given`, which becomes a function of given.py
Outputs = list[np.ndarray]


class Call(NamedTuple):
    """One call of a student's function."""

    function: str
    arguments: Arguments
    about: str  # what is special about these inputs, for messages: "greedy drafts"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Hole:
    """A function that students write, and what stands in its place in their copy of the packages."""

    name: str  # in the solution's file
    function: str  # the reference's, a dotted name
    signature: str  # "(buffer, new, start)"
    docstring: str  # the task, without the answer
    outputs: tuple[str, ...]  # the names of the results
    body: str  # of the reference's function in a student's copy: it calls `solve` of `delegate.py`
    # The reference under the student's signature, where that is another one than the reference's.
    reference: Callable[..., Any] | None = None
    is_up_to_scale: bool = False  # results are weights, and are divided by their sum before they are compared
    # (arguments, outputs) -> for each output which elements have a meaning; all, unless given
    meaning: Callable[[Arguments, Outputs], list[np.ndarray]] | None = None

    @property
    def parameters(self) -> list[str]:
        return [name.strip() for name in self.signature.strip("()").split(",")]

    def answer(self, arguments: Arguments) -> Any:
        """What the reference, or a variant that is in its place at the moment, gives."""
        if self.reference is not None:
            return self.reference(**arguments)
        owner, attribute = locate(self.function)
        arrays = {n: jnp.asarray(v) if isinstance(v, np.ndarray) else v for n, v in arguments.items()}
        return getattr(owner, attribute)(**arrays)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Another function of the reference that says the answer, and the body that it has in a student's copy instead."""

    function: str
    body: str
    docstring: str | None = None  # None keeps the reference's, if it has one


# What a property of a function's results looks at: the calls and the results of each.  None, or what is wrong in one sentence.
Judge = Callable[[Sequence[Call], Sequence[Outputs]], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """A question with points.  Without a judge, results must be the reference's."""

    name: str
    what: str  # one line for the page
    points: int
    calls: Callable[[np.random.Generator], list[Call]]
    judge: Judge | None = None
    is_public: bool = False  # its expected values may be shown


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Misconception:
    """A wrong idea.  `says` names the property that is violated, and an experiment that shows it; never the answer."""

    variant: Variant
    says: str

    @property
    def name(self) -> str:
        return self.variant.name


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    number: str  # "09"
    slug: str  # "accept": the file is solutions/a09_accept.py
    title: str
    question: str  # that the assignment answers, in one sentence
    task: str  # Markdown: what to write, and what the page has to define
    by_hand: str  # the written part, graded by a person
    hints: tuple[str, ...]
    hours: int
    read: tuple[str, ...]  # what to read first
    holes: tuple[Hole, ...]
    checks: tuple[Check, ...]
    misconceptions: tuple[Misconception, ...]
    equivalents: tuple[Variant, ...] = ()  # right, in other words
    cuts: tuple[Cut, ...] = ()
    removed: tuple[str, ...] = ()  # helpers of the reference that say the answer; a student's copy does without
    terms: tuple[str, ...] = ()  # of the glossary, that define the answer; a student's copy does without
    withheld: tuple[str, ...] = ()  # files that a student's copy does not have
    # Of a student's copy: file -> text that says the answer, outside of functions -> what stands there instead.
    rewritten: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    # Pieces of the answer that may stand elsewhere -> why they give nothing away.
    excused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"a{self.number}_{self.slug}"

    @property
    def points(self) -> int:
        """Those that a machine gives; `by_hand` has one more."""
        return sum(check.points for check in self.checks)

    def hole(self, name: str) -> Hole:
        return next(hole for hole in self.holes if hole.name == name)


def known(name: str, says: str) -> Misconception:
    """A known bug of other engines, or a variant that is right elsewhere, by name."""
    return Misconception(variant=MUTANTS.get(name) or EQUIVALENT[name], says=says)


def own(name: str, function: str, change: Mapping[str, str], says: str) -> Misconception:
    """A slip of learners, as a change of the reference."""
    return Misconception(variant=variant(name, function, change), says=says)


def variant(name: str, function: str, change: Mapping[str, str], what: str = "") -> Variant:
    """A change of the reference that no engine was seen to have."""
    return Variant(name=name, what=what, function=function, change=change)


def cleaned(text: str) -> str:
    """A docstring or a page's paragraph without its indentation."""
    return inspect.cleandoc(text)
