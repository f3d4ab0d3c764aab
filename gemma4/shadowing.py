"""PyPI has other packages called `drafter` and `decoding`; the first on the path, or the last installed, wins.

Ours carry the marker below in their `__init__.py`.  What goes by one of these names without it is somebody else's.
"""

import importlib.util

MARKER = '__distribution__ = "gemma4-mtp"'


def check_not_shadowed(*names: str) -> None:
    """Errors: ImportError that says what hides our package and what to do.  Runs none of the other one's code."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue  # not installed at all: whoever imports it will be told
        source = spec.loader.get_source(name) if hasattr(spec.loader, "get_source") else None
        is_bare_folder = spec.origin is None
        if is_bare_folder or (source is not None and MARKER not in source):
            place = spec.origin or ", ".join(spec.submodule_search_locations or [])
            raise ImportError(
                f"the package {name!r} at {place} is not gemma4-mtp's, but hides it: install gemma4-mtp into a "
                f"fresh virtual environment, or remove the other (pip uninstall {name}) and install gemma4-mtp again",
                name=name,
            )
