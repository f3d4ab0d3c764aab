"""The assignments, one file each.  To add one, write a file and name it below; nothing else has to change.

1. Choose the functions of the reference that become holes.  A `Hole` has the student's signature and a docstring that says
   what comes out, not how.  `body` is what stands in the student's copy of the packages: `solve("NN function", arguments,
   like=...)` calls the student's function; `like` are arrays of the results' shapes and dtypes.  If the student's signature is
   plainer than the reference's, `reference` calls the reference under it.
2. Write checks, small ones, with few different shapes.  `calls` makes inputs from a generator of random numbers; `inputs.py`
   has distributions whose sums are exact in every order.  Public checks are `example` and `random`.  A check with a `judge` is
   a property: it holds for every right implementation.
3. List misconceptions: known bugs of the oracle, or a `variant` of your own.  `says` names the property that is violated and an
   experiment that shows it, never the answer.  List equivalents: right, in other words.
4. Run `gemma4-mtp course verify NN`.  It says which misconception is not caught, which two look the same, which check an empty
   answer passes, and where the answer still stands in a student's copy (`cuts` and `withheld` remove that).
5. Add right solutions of your own to tests/decoding/course/solutions, in NumPy loops and in jax.numpy, and write the page with
   `python -m decoding.course.pages`.
"""

import functools
import importlib

from decoding.course.assignment import Assignment
from decoding.course.error import CourseError

# In the order of their numbers.  The module's name is that of the student's file.
NAMES = ("a01_attention", "a03_ring", "a06_draft", "a07_clustered", "a09_accept", "a10_bookkeeping")


@functools.cache
def assignment(number: str) -> Assignment:
    """The assignment with this number, such as "09" or "9".  Errors: CourseError if there is none."""
    for name in NAMES:
        if name[1:3] == number.zfill(2):
            try:
                return importlib.import_module(f"{__name__}.{name}").ASSIGNMENT
            except Exception as error:
                raise CourseError(f"assignment {number}: its record {name}.py cannot be read: {error!r}") from error
    raise CourseError(f"assignment {number}: expected one of {', '.join(name[1:3] for name in NAMES)}")


def assignments() -> list[Assignment]:
    return [assignment(name[1:3]) for name in NAMES]
