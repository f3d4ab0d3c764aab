"""What a mutant is: one function of the reference with a small change in its text, and where such a bug was reported.

A mutant is data.  `change` maps a piece of the function's source to its buggy form.  So a mutant reads as the one-line mistake
that it is, stays valid while the rest of the function changes, and raises an error when the line that it changes is gone.
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

# The worst effect for a user: greedy text that is not the target's; the same greedy text (near-ties aside) but another
# distribution; the right distribution, only slower; or none, because a norm cancels it.
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
    change: Mapping[str, str]  # old text, which occurs exactly once in the function's source -> new text
    bugs: tuple[str, ...] = ()  # ids in the catalogue
    seen_in: tuple[Seen, ...] = ()

    def apply(self) -> contextlib.AbstractContextManager[None]:
        """Within the block, the reference has the changed function.

        Code that was compiled earlier still has the original: run unjitted, or trace again.
        """
        return replaced(self.function, self.compiled())

    def source(self) -> str:
        """The changed function's text.  Errors: ValueError unless each text to change occurs exactly once."""
        text = source_of(self.function)
        for old, new in self.change.items():
            if (count := text.count(old)) != 1:
                raise ValueError(
                    f"{self.name}: expected this text once in {self.function}, found it {count} times: {old!r}"
                )
            text = text.replace(old, new)
        return text

    def compiled(self) -> Any:
        """The changed function, with the original's module as its globals."""
        owner, attribute = locate(self.function)
        module = sys.modules[owner.__module__ if inspect.isclass(owner) else owner.__name__]
        text, file = self.source(), f"<{self.name}>"
        text = f"if True:\n{text}" if inspect.isclass(owner) else text  # a method's text is indented
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # for tracebacks and debuggers
        namespace: dict[str, Any] = {}
        exec(compile(text, file, "exec"), vars(module), namespace)
        return namespace[attribute]

    def diff(self) -> str:
        """The removed and the added lines, marked - and +."""
        old, new = (textwrap.dedent(text).splitlines() for text in (source_of(self.function), self.source()))
        return "\n".join(line for line in difflib.ndiff(old, new) if line[0] in "-+")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mutant(Variant):
    """A known bug as a change of the reference; without `bugs`, a slip of learners that has no number in the catalogue."""

    rank: int  # its class, a key of `catalogue.CLASSES`
    shows_at: str  # the first tensor to differ, in the first case and stage where it does: CASE/STAGE/WHAT
    fix: str  # one sentence
    effect: Effect = "wrong text"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Equivalent(Variant):
    """Another way to the same result, which must not be called a bug.

    tried_at: a case and a stage in which it takes part.
    same_at:  patterns of the tensors that are the same; others may differ (for example logits whose argmax is the same).
              Empty for a variant that draws other tokens from the same distribution.
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
    found: Any = vars(owner)[attribute]
    found = found.fget if isinstance(found, property) else found
    return inspect.getsource(inspect.unwrap(found))


@contextlib.contextmanager
def replaced(function: str, new: Any) -> Iterator[None]:
    """Within the block, a function of the reference is replaced under every name that it has."""
    owner, attribute = locate(function)
    original = vars(owner)[attribute]
    names = [(owner, attribute)] if inspect.isclass(owner) else names_of(original)
    for holder, name in names:
        setattr(holder, name, new)
    try:
        yield
    finally:
        for holder, name in names:
            setattr(holder, name, original)


def watched(function: str, on_call: Callable[[str], object]) -> Any:
    """The same function, which reports each call."""
    owner, attribute = locate(function)
    original = vars(owner)[attribute]
    getter: Any = original.fget if isinstance(original, property) else original

    def call(*args: Any, **settings: Any) -> Any:
        on_call(function)
        return getter(*args, **settings)

    return property(call) if isinstance(original, property) else call


def names_of(original: Any) -> list[tuple[ModuleType, str]]:
    """Every module-level name of a function in the reference: `from m import f` makes one in each module."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in REFERENCE]
    return [(module, name) for module in modules for name, value in list(vars(module).items()) if value is original]
