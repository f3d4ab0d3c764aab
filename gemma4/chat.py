"""Conversations as token ids and back, as the instruction-tuned models (-it) were trained on.

    <bos><|turn>user⏎Hello<turn|>⏎<|turn>model⏎

Source: the released chat templates ("Canonical Chat Template", 2026-07-09), as other engines quote them.  They differ in one
point: without thinking, those of 26B-A4B and 31B end with an empty thought, <|channel>thought⏎<channel|>, and those of E2B and
E4B do not (12B's is unknown here).  Turns are text: tools and images are left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

BOS, TURN, END_OF_TURN, THINK = "<bos>", "<|turn>", "<turn|>", "<|think|>"
THOUGHT, END_OF_THOUGHT = "<|channel>", "<channel|>"
# The names that people and APIs use, and those of the template.
ROLES = {"system": "system", "developer": "system", "user": "user", "model": "model", "assistant": "model"}


class Answer(NamedTuple):
    thought: str  # empty unless the model thought first
    text: str


def chat(
    tokenizer: Any, turns: Iterable[tuple[str, str]], *, thinking: bool = False, empty_thought: bool = False
) -> list[int]:
    """The ids of a conversation up to where the model's next turn begins.

    Space around a turn's text is removed, and so are the thoughts in the model's earlier turns.

    tokenizer:     of `tokenizers`, or a fast tokenizer of transformers.
    turns:         (role, text) pairs; a role is "system" (or "developer"), "user" or "model" (or "assistant"); the last turn is
                   the user's.
    thinking:      ask for a thought before the answer: <|think|> opens the system turn.
    empty_thought: end with an empty thought instead, as the templates of 26B-A4B and 31B do.
    Errors:        ValueError for anything but such pairs, for another role, for a last turn that is not the user's, for text
                   that holds a control token or another special token, and for a tokenizer that lacks the control tokens,
                   truncates or pads.
    """
    tokenizer, turns = check_tokenizer(tokenizer), check_turns(turns)
    if thinking and empty_thought:
        raise ValueError("thinking and empty_thought: expected one of them or none, got both")
    control = {name: _control_id(tokenizer, name) for name in (BOS, TURN, END_OF_TURN, THINK, THOUGHT, END_OF_THOUGHT)}
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def plain(text: str, where: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found = [name for name, i in (control | special).items() if i in ids]
        if found:
            raise ValueError(f"{where}: expected text, got the control token {found[0]} in it; take it out")
        return ids

    ids = [control[BOS]]
    if thinking:
        ids += [control[TURN], *plain("system\n", "system"), control[THINK]]
        system = turns.pop(0)[1] if turns[0][0] == "system" else ""
        ids += [*plain(f"\n{system}", "turn 0"), control[END_OF_TURN], *plain("\n", "system")]
    for number, (role, text) in enumerate(turns):
        ids += [control[TURN], *plain(f"{role}\n{text}", f"turn {number}"), control[END_OF_TURN], *plain("\n", role)]
    ids += [control[TURN], *plain("model\n", "model")]
    return ids + [control[THOUGHT], *plain("thought\n", "model"), control[END_OF_THOUGHT]] * empty_thought


def read_answer(tokenizer: Any, ids: Sequence[int]) -> Answer:
    """The thought and the text in what the model generated, without control tokens.

    A thought that has no end yet is all thought.  Errors: ValueError as in `chat`, for the tokenizer.
    """
    tokenizer = check_tokenizer(tokenizer)
    begin, end = (_control_id(tokenizer, name) for name in (THOUGHT, END_OF_THOUGHT))
    parts: dict[bool, list[int]] = {True: [], False: []}
    is_thought = False
    for i in map(int, ids):
        if i in (begin, end):
            is_thought = i == begin
        else:
            parts[is_thought].append(i)
    thought, text = (tokenizer.decode(parts[kind]).strip() for kind in (True, False))
    return Answer(thought.removeprefix("thought").lstrip("\n"), text)


def check_tokenizer(tokenizer: Any) -> Tokenizer:
    """Errors: ValueError unless it is a tokenizer that neither truncates nor pads; one of transformers holds such a one."""
    found = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(found, Tokenizer):
        raise ValueError(
            "tokenizer: expected a tokenizers.Tokenizer, as decoding.load_pair() returns, or a fast tokenizer of transformers, "
            f"got a {type(tokenizer).__name__}"
        )
    if found.truncation or found.padding:
        raise ValueError(
            "the tokenizer truncates or pads: expected one that does neither; call its no_truncation() and no_padding()"
        )
    return found


def check_turns(turns: Any) -> list[tuple[str, str]]:
    """The turns as the template writes them: its roles, stripped text, no thoughts, neighbouring turns of the model joined.

    Errors: ValueError for anything that the model cannot answer.
    """
    are_many = isinstance(turns, Iterable) and not isinstance(turns, (str, bytes, Mapping))
    given: list[Any] = list(turns) if are_many else [turns]
    checked: list[tuple[str, str]] = []
    for number, turn in enumerate(given):
        is_pair = isinstance(turn, (tuple, list)) and [isinstance(part, str) for part in turn] == [True, True]
        if not is_pair:
            raise ValueError(f'turn {number}: expected a role and a text, such as ("user", "Hello"), got {turn!r:.80}')
        if turn[0] not in ROLES:
            raise ValueError(f"turn {number}: expected one of the roles {', '.join(ROLES)}, got {turn[0]!r:.80}")
        role, text = ROLES[turn[0]], turn[1].strip()
        if role == "model":
            text = strip_thoughts(text)
            if checked and checked[-1][0] == "model":
                text = checked.pop()[1] + text
        checked.append((role, text))
    if not checked or checked[-1][0] != "user":
        last = f"the {checked[-1][0]}'s last" if checked else "none"
        raise ValueError(f"turns: expected a user's turn for the model to answer, got {last}")
    return checked


def strip_thoughts(text: str) -> str:
    """Without thoughts: from <|channel> up to <channel|>, or to the end."""
    kept = re.sub(rf"{re.escape(THOUGHT)}.*?({re.escape(END_OF_THOUGHT)}|$)", "", text, flags=re.DOTALL)
    return kept.replace(END_OF_THOUGHT, "").strip()


def _control_id(tokenizer: Tokenizer, name: str) -> int:
    if (i := tokenizer.token_to_id(name)) is None:
        raise ValueError(f"the tokenizer has no token {name}: expected that of a Gemma 4 model for chats (-it)")
    return i
