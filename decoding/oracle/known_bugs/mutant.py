"""What a mutant is: one function of the reference with a small change in its text, and where such a bug has been seen.

A mutant is data.  `change` maps a piece of the function's source to what the bug makes of it, so that a mutant reads as
the one-line mistake that it is, follows the reference wherever the rest of the function goes, and complains as soon as
the line it changes is no longer there.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Literal, NamedTuple

REFERENCE = ("gemma4", "drafter", "decoding")

# How a user meets the bug, the worst of it: greedy text that is not the target's; the same greedy text, near-ties aside, but
# another law; the right text and law, only later; or not at all, since a norm makes it good.
Effect = Literal["wrong text", "wrong probabilities", "fewer accepted drafts", "nothing"]


class Seen(NamedTuple):
    engine: str
    link: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One reference function with a change."""

    name: str
    what: str  # one sentence
    function: str  # dotted name, e.g. "gemma4.layers.Attention.__call__"
    change: Mapping[str, str]  # old text, as it stands in the file, where it occurs exactly once -> new text
    bugs: tuple[str, ...] = ()  # ids in the catalogue
    seen_in: tuple[Seen, ...] = ()

    def apply(self) -> contextlib.AbstractContextManager[None]:
        """Within the block, the reference has the changed function.

        What was compiled before still has the old one: run unjitted, or trace anew.
        """
        return replaced(self.function, self.compiled())

    def source(self) -> str:
        """The changed function's text.  Errors: ValueError if the text to change is not there, or there twice."""
        text = source_of(self.function)
        for old, new in self.change.items():
            if (count := text.count(old)) != 1:
                raise ValueError(f"{self.name}: {self.function} has {count} times, not once: {old!r}")
            text = text.replace(old, new)
        return text

    def compiled(self) -> Any:
        """The changed function; it sees its module as the original does."""
        owner, attribute = locate(self.function)
        module = sys.modules[owner.__module__ if inspect.isclass(owner) else owner.__name__]
        text, file = self.source(), f"<{self.name}>"
        text = f"if True:\n{text}" if inspect.isclass(owner) else text  # a method stands indented
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # for tracebacks and debuggers
        namespace: dict[str, Any] = {}
        exec(compile(text, file, "exec"), vars(module), namespace)
        return namespace[attribute]

    def diff(self) -> str:
        """The lines taken out and put in, marked - and +."""
        old, new = (textwrap.dedent(text).splitlines() for text in (source_of(self.function), self.source()))
        return "\n".join(line for line in difflib.ndiff(old, new) if line[0] in "-+")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mutant(Variant):
    """A known bug as a change of the reference; without `bugs`, a slip that learners make and nobody has reported."""

    rank: int  # its class, a key of `catalogue.CLASSES`
    shows_at: str  # the first tensor to differ, in the first case and stage where it does: CASE/STAGE/WHAT
    fix: str  # one sentence
    effect: Effect = "wrong text"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Equivalent(Variant):
    """Another way to the same result, which is not to be called a bug.

    tried_at: a case and a stage in which it takes part.
    same_at: patterns of the tensors that are the same; what lies beside them may differ (logits above equal tokens, say).
             Empty for a variant that draws other tokens with the same law.
    """

    tried_at: str = "E2B/forward"
    same_at: tuple[str, ...] = ("*",)


def locate(function: str) -> tuple[ModuleType | type, str]:
    """The module or class that holds a function, and the function's name there."""
    *parents, attribute = function.split(".")
    for length in range(len(parents), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            owner = importlib.import_module(".".join(parents[:length]))
            return functools.reduce(getattr, parents[length:], owner), attribute
    raise ValueError(f"{function}: no such module")


def source_of(function: str) -> str:
    owner, attribute = locate(function)
    found = vars(owner)[attribute]
    found = found.fget if isinstance(found, property) else found
    return inspect.getsource(inspect.unwrap(found))


@contextlib.contextmanager
def replaced(function: str, new: Any) -> Iterator[None]:
    """Within the block, a function of the reference is another one, under every name it goes by."""
    owner, attribute = locate(function)
    original = vars(owner)[attribute]
    places = [(owner, attribute)] if inspect.isclass(owner) else names_of(original)
    for place, name in places:
        setattr(place, name, new)
    try:
        yield
    finally:
        for place, name in places:
            setattr(place, name, original)


def watched(function: str, on_call: Callable[[str], object]) -> Any:
    """The function as it is, but each call of it is reported."""
    owner, attribute = locate(function)
    original = vars(owner)[attribute]

    def call(*args, **settings):
        on_call(function)
        return (original.fget if isinstance(original, property) else original)(*args, **settings)

    return property(call) if isinstance(original, property) else call


def names_of(original: Any) -> list[tuple[ModuleType, str]]:
    """Every module-level name of a function in the reference: `from m import f` makes a new one in each module."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in REFERENCE]
    return [(module, name) for module in modules for name, value in list(vars(module).items()) if value is original]
