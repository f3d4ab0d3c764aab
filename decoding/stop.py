"""Stop strings: a text ends with the token that completes one of them, also inside an accepted run."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from decoding.state import Round


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
                    texts[row].append(token)
                    if self.is_complete(texts[row]):
                        num_emitted[row], stopped[row] = index + 1, True
                        break
            yield last._replace(num_emitted=num_emitted.astype(last.num_emitted.dtype))
            if stopped.all():
                return

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens has a stop string that it did not have without the last of them."""
        # A token adds at least a byte, so that this many hold the longest string, and what a tokenizer joins to it.
        tail = tokens[-(max(len(string.encode()) for string in self.strings) + 8) :]
        text = self.tokenizer.decode(tail)
        return any(string in text for string in self.strings)
