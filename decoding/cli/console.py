"""What a generation looks like: text as it comes, each piece marked by its origin, and a table of counts after it."""

import os
from collections.abc import Sequence
from enum import Enum
from io import TextIOBase
from typing import IO, cast

from rich.color import ColorSystem
from rich.console import Console, RenderableType
from rich.style import Style
from rich.table import Table
from tokenizers import Tokenizer

from decoding.state import Round
from decoding.stats import Stats
from decoding.stop import BYTE_FALLBACK

INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are not a whole character (yet)


class Origin(Enum):
    """Where a piece of text came from: its style with colours, and the marks around it."""

    PROMPT = ("dim", "", "")
    ACCEPTED = ("green", "", "")
    REJECTED = ("red strike", "{", "}")
    OWN = ("bold magenta", "[", "]")

    def __init__(self, style: str, opening: str, closing: str):
        self.style, self.opening, self.closing = Style.parse(style), opening, closing


class TextStream:
    """Token ids in, text out as soon as it is certain.  The pieces joined are exactly `tokenizer.decode` of all ids.

    Byte-level tokens may split a character: its bytes are held back until the token that completes it.
    Byte-fallback tokens, such as <0xE2>, are decoded a run at a time: one wrong byte changes the text of all before it.  So a
    run is held back until another token ends it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode = tokenizer.decode
        self._name = tokenizer.id_to_token
        self._silent = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._context: list[int] = []  # the ids that last gave text: a decoder may depend on what comes before
        self._held: list[int] = []
        self._in_run = False

    def push(self, token: int) -> str:
        self._held.append(token)
        name = self._name(token)
        if name is not None and token not in self._silent:  # others never reach the decoder, so they end no run
            self._in_run = BYTE_FALLBACK.fullmatch(name) is not None
        if self._in_run:
            return ""
        text = self._text_of_held()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self._context, self._held = self._held, []
        return text

    def end(self) -> str:
        """The text that is still held back: a run of bytes, or half a character, if the ids end inside one."""
        text, self._held = self._text_of_held(), []
        return text

    def preview(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` would add if they came next, with the character that is held back half, but no whole ones."""
        held, text = self._text_of_held(), self._text_of_held(tokens)
        return text if INCOMPLETE in held else text.removeprefix(held)

    def _text_of_held(self, more: Sequence[int] = ()) -> str:
        return self._decode([*self._context, *self._held, *more])[len(self._decode(self._context)) :]


class IdStream:
    """Without a tokenizer, the ids themselves."""

    def push(self, token: int) -> str:
        return f"{token} "

    def end(self) -> str:
        return ""

    def preview(self, tokens: Sequence[int]) -> str:
        return "".join(f"{token} " for token in tokens)


def use_color(out: TextIOBase) -> bool:
    """Whether `out` is a terminal with colours and the user does not object (https://no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Printer:
    """Writes rounds as they end.  All text goes through `segment`."""

    def __init__(
        self,
        out: TextIOBase,
        tokenizer: Tokenizer | None,
        *,
        color: bool = False,
        marks: bool = False,  # where there are no colours
        show_rejected: bool = False,  # needs one of both
        is_baseline: bool = False,  # then all tokens are the target's own, so none is marked
    ):
        self.out, self.color, self.marks = out, color, marks and not color
        self.show_rejected, self.is_baseline = show_rejected and (color or marks), is_baseline
        self._stream = TextStream(tokenizer) if tokenizer else IdStream()
        self._is_prefill = True
        self._last = Origin.OWN

    def prompt(self, text: str) -> None:
        self._write(Origin.PROMPT, text)

    def round(self, last: Round) -> None:
        """Print the first row of a round: accepted drafts, rejected ones if asked for, and the target's own token."""
        tokens = last.tokens[0, : last.num_emitted[0]].tolist()
        num_accepted = int(last.num_accepted[0])
        self._emit(Origin.ACCEPTED, tokens[:num_accepted])
        rejected = last.draft_tokens[0, num_accepted:].tolist()
        text_ended_before = len(tokens) <= num_accepted
        if self.show_rejected and rejected and not self._is_prefill and not text_ended_before:
            self._write(Origin.REJECTED, _one_line(self._stream.preview(rejected)))
        self._emit(Origin.OWN, tokens[num_accepted:])
        self._is_prefill = False
        self.out.flush()

    def end(self) -> None:
        self._write(self._last, self._stream.end())
        self.out.write("\n")
        self.out.flush()

    def _emit(self, origin: Origin, tokens: Sequence[int]) -> None:
        """Write the tokens' text.  A character whose bytes come from several tokens has the origin of the last of them."""
        if tokens:
            self._last = origin
        self._write(origin, "".join(map(self._stream.push, tokens)))

    def _write(self, origin: Origin, text: str) -> None:
        if text:
            self.out.write(self.segment(origin, text))

    def segment(self, origin: Origin, text: str) -> str:
        text = harmless(text)
        if self.is_baseline and origin is Origin.OWN:
            return text
        if self.color:
            return origin.style.render(text, color_system=ColorSystem.STANDARD)
        if not self.marks:
            return text
        inner = text.strip("\n")  # a mark on another line than its text would confuse
        before = text[: len(text) - len(text.lstrip("\n"))] if inner else ""
        return before + origin.opening + inner + origin.closing + text[len(before) + len(inner) :]

    def legend(self) -> str:
        """What colours or marks mean; nothing where there are none."""
        if self.is_baseline or not (self.color or self.marks):
            return ""
        origins = {Origin.ACCEPTED: "drafted and accepted", Origin.OWN: "the target's own"}
        if self.show_rejected:
            origins[Origin.REJECTED] = "drafted and rejected"
        kind = "colours" if self.color else "marks"
        return f"({kind}: " + ", ".join(self.segment(origin, name) for origin, name in origins.items()) + ")\n"


def harmless(text: str) -> str:
    """Control characters as escapes: a model may write any, and a terminal would obey them."""

    def is_control(c: str) -> bool:
        return ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0

    return "".join(f"\\x{ord(c):02x}" if is_control(c) and c not in "\n\t" else c for c in text)


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").rstrip(INCOMPLETE)


LABEL_WIDTH = len(
    "accepted, by draft position"
)  # the longest label, so that tables printed one after the other line up


def print_counts(out: TextIOBase, stats: Stats, draft_length: int) -> None:
    shares = enumerate(stats.acceptance_per_position, start=1)
    rows = {
        "tokens per round": f"{stats.tokens_per_round:.2f} of at most {draft_length + 1}",
        "accepted, by draft position": "  ".join(f"{position}: {share:.0%}" for position, share in shares),
    }
    print_rows(out, rows)


def print_baseline(out: TextIOBase, stats: Stats) -> None:
    out.write(f"\nautoregressive: {stats.emitted} tokens\n")


def print_rows(out: TextIOBase, rows: dict[str, str]) -> None:
    """A label and a value a line; long values are wrapped in their own column."""
    table = Table.grid(padding=(0, 2))
    for label, value in rows.items():
        table.add_row(label.ljust(LABEL_WIDTH), value)
    print_rich(out, table)


def print_rich(out: TextIOBase, what: RenderableType, *, color: bool = False, style: str | None = None) -> None:
    """`what` as rich renders it, as wide as the terminal; `style` applies with colours only."""
    colors = "standard" if color else None
    console = Console(file=cast(IO[str], out), highlight=False, force_terminal=color, color_system=colors)
    with console.capture() as captured:
        console.print(what, style=style)
    out.write(captured.get())
