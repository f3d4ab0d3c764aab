"""The page from a trace: page.html with page.css, page.js and the trace in it; one file that fetches nothing.

Nothing but the standard library, so that the documentation site can build its example without the models.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent


def build_page(trace: dict[str, Any]) -> str:
    """The HTML.  Its security policy allows this style and this script, by their hashes, and no other, and no request."""
    style, script = (_read(name) for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:"
    data = json.dumps(trace, ensure_ascii=False, separators=(",", ":"))
    # In a script element only `<` can end the data.  Half of a surrogate pair, which JSON may hold, is no UTF-8.
    data = data.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode("utf-8")
    page = _read("page.html")
    for name, part in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("TRACE", data)):
        before, after = page.split(f"%{name}%")
        page = before + part + after
    return page


def _read(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
