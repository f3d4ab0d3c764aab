"""PyPI has other packages called `drafter` and `decoding`.  The first on the path, or the last installed, hides the others.

Ours have the marker below in their `__init__.py`.  A package of one of these names without it is not ours.
"""

import importlib.util

MARKER = '__distribution__ = "gemma4-mtp"'


def check_not_shadowed(*names: str) -> None:
    """Errors: ImportError that names the package that hides ours, and what to do.  Runs none of that package's code."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue  # not installed at all: the import itself says so
        get_source = getattr(spec.loader, "get_source", None)
        source = get_source(name) if get_source else None
        is_bare_folder = spec.origin is None
        if is_bare_folder or (source is not None and MARKER not in source):
            location = spec.origin or ", ".join(spec.submodule_search_locations or [])
            raise ImportError(
                f"the package {name!r} at {location} is not gemma4-mtp's, but hides it: install gemma4-mtp into a "
                f"fresh virtual environment, or remove the other (pip uninstall {name}) and install gemma4-mtp again",
                name=name,
            )
