"""Stop strings: a text ends with the token that completes one of them, also inside an accepted run."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from decoding.state import Round

BYTE_FALLBACK = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token that is one byte of a character


class StopStrings:
    """Watches rounds.  Errors: ValueError unless these are strings, not empty, with a tokenizer."""

    def __init__(self, strings: Any, tokenizer: Any):
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if not all(isinstance(string, str) and string for string in self.strings):
            raise ValueError(f"stop_strings: expected strings of at least one character, got {self.strings!r:.80}")
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(
                "tokenizer: expected the pair's tokenizer (decoding.load_pair() returns it), because stop_strings are given, "
                f"got {tokenizer!r:.80}"
            )
        self.tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def cut(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """The rounds with what follows a stop string taken out; ends when every row has met one, or is done."""
        texts: list[list[int]] = []
        stopped = np.zeros(0, bool)
        for last in rounds:
            if not texts:
                texts, stopped = [[] for _ in last.num_emitted], np.zeros(len(last.num_emitted), bool)
            num_emitted = np.where(stopped, 0, last.num_emitted)
            for row, count in enumerate(num_emitted):
                for index, token in enumerate(last.tokens[row, :count].tolist()):
                    if self._is_silent(token):
                        continue
                    texts[row].append(token)
                    if self.is_complete(texts[row]):
                        num_emitted[row], stopped[row] = index + 1, True
                        break
            yield last._replace(num_emitted=num_emitted.astype(last.num_emitted.dtype))
            if stopped.all():
                return

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens, none of them silent, has a stop string that it had not without the last."""
        # Such a token adds at least a byte, so that this many hold the longest string, and what a tokenizer joins to it.
        begin = max(0, len(tokens) - max(len(string.encode()) for string in self.strings) - 8)
        while begin > 0 and self._is_byte(tokens[begin]):  # a run of bytes is decoded whole
            begin -= 1
        text = self.tokenizer.decode(tokens[begin:])
        return any(string in text for string in self.strings)

    def _is_silent(self, token: int) -> bool:
        """Whether a token has no text: a special one, or one that the tokenizer lacks.  Any number may be inside a string."""
        return token in self._special or self.tokenizer.id_to_token(token) is None

    def _is_byte(self, token: int) -> bool:
        name = self.tokenizer.id_to_token(token)
        return name is not None and BYTE_FALLBACK.fullmatch(name) is not None
