"""Count the operations in the matrix products of a traced program."""

import math
from collections.abc import Callable, Iterator

import jax


def counted_flops(jaxpr) -> int:
    """All matrix products of a jaxpr: 2 x batch x m x n x k for each, times the iterations of a scan around it.

    Errors: ValueError for a product in a `while`, whose number of iterations is unknown, and for branches that differ.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [counted_flops(sub) for sub in _jaxprs(equation.params.values())]
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * depth * equation.outvars[0].aval.size
            case "scan":
                total += equation.params["length"] * sum(inner)
            case "cond":
                if len(set(inner)) > 1:
                    raise ValueError(f"cond: expected branches of equal operations, got {inner}")
                total += inner[0]
            case "while":
                if any(inner):
                    raise ValueError("a matrix product in a loop of unknown length")
            case _:  # jit, custom derivatives and others call their inner programs once
                total += sum(inner)
    return total


def _jaxprs(values) -> Iterator:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield getattr(value, "jaxpr", value)


def flops_of(run: Callable, *args) -> int:
    return counted_flops(jax.make_jaxpr(run)(*args).jaxpr)
