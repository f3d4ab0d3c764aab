"""Make a twin of a module: a subclass that holds the same weights."""

import copy
from typing import Any, TypeVar

from flax import nnx

Twin = TypeVar("Twin", bound=nnx.Module)


def twin_of(module: nnx.Module, twin_class: type[Twin], **attributes: Any) -> Twin:
    """`module` as a `twin_class`, a subclass of its own, with further attributes.  Shares all weights and submodules."""
    assert issubclass(twin_class, type(module)), (twin_class, type(module))
    twin: Any = copy.copy(module)
    twin.__class__ = twin_class
    for name, value in attributes.items():
        setattr(twin, name, value)
    return twin
