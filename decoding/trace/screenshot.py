"""Pictures of a trace's page: `python -m decoding.trace.screenshot TRACE.json PICTURE.png [--place "#r=3&s=accept&d=1"]`.

It needs the extra `browser`, and a Chromium that the system has.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decoding.trace.check import TraceError, read_trace
from decoding.trace.page import build_page
from gemma4.shadowing import mistake

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PLACE = "#r=1&s=accept&d=3"


def find_browser() -> str | None:
    """The system's Chromium."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def take(trace: dict[str, Any], picture: Path, *, place: str = PLACE, width: int = 1000, height: int = 1500) -> None:
    """A picture of the page at a place, as a browser window of this size shows it.

    Errors: TraceError if there is no browser, or nothing that drives it.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise TraceError("playwright is missing: install the extra `browser`") from error
    if (executable := find_browser()) is None:
        raise TraceError(f"no browser found, looked for {', '.join(BROWSERS)}; install the distribution's chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        page_file = Path(scratch) / "trace.html"
        page_file.write_text(build_page(trace), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto(f"{page_file.as_uri()}{place}")
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=picture)
        browser.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", metavar="TRACE.json")
    parser.add_argument("picture", metavar="PICTURE.png", type=Path)
    parser.add_argument("--place", default=PLACE, help="as in the page's address (%(default)s)")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=1500)
    args = parser.parse_args(arguments)
    try:
        take(read_trace(args.trace), args.picture, place=args.place, width=args.width, height=args.height)
    except TraceError as error:
        return mistake(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
