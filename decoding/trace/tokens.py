"""The text of single tokens, for people: bytes that are no character by themselves are written out, such as <0xE2>."""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer

BYTE_FALLBACK = re.compile("<0x[0-9A-Fa-f]{2}>")
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not a whole character


def token_texts(tokenizer: Tokenizer | None, ids: Iterable[int]) -> dict[str, str]:
    """id (as a string, as JSON needs it) -> text.  Without a tokenizer: #id."""
    return {str(token): _text(tokenizer, token) for token in sorted(set(ids))}


def _text(tokenizer: Tokenizer | None, token: int) -> str:
    name = None if tokenizer is None else tokenizer.id_to_token(token)
    if tokenizer is None or name is None:
        return f"#{token}"
    text = tokenizer.decode([token], skip_special_tokens=False)
    if text and REPLACEMENT not in text:
        return text
    values = [BYTES.get(character) for character in name]
    if not text or None in values or BYTE_FALLBACK.fullmatch(name):  # not a byte-level name
        return name
    return "".join(f"<0x{value:02X}>" for value in values)


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: itself if it can be printed, else one past 255.

    Source: `bytes_to_unicode`, GPT-2's encoder.py.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_characters()
