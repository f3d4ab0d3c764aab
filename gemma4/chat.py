"""Chat turns as token ids, as the instruction-tuned models (-it) were trained on.

    <bos><|turn>user⏎Hello<turn|>⏎<|turn>model⏎

Source: the chat templates of 2026-07-09, as public reports and other engines' tests quote them.  They differ in one point:
without thinking, those of 26B-A4B and 31B end with an empty thought, <|channel>thought⏎<channel|>, and those of E2B and E4B do
not (12B's is unknown here).  Tools and images are left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

BOS, TURN, END_OF_TURN, THINK = "<bos>", "<|turn>", "<turn|>", "<|think|>"
THOUGHT, END_OF_THOUGHT = "<|channel>", "<channel|>"
ROLES = ("system", "user", "model")


def chat(
    tokenizer: Tokenizer, turns: Iterable[tuple[str, str]], *, thinking: bool = False, empty_thought: bool = False
) -> list[int]:
    """The ids of a conversation up to where the model's next turn begins.

    turns:         (role, text) pairs; a role is "system" (only first), "user" or "model"; the last turn is the user's.
    thinking:      ask for a thought before the answer: <|think|> opens the system turn.
    empty_thought: end with an empty thought instead, as the templates of 26B-A4B and 31B do.
    Errors:        ValueError for anything but such pairs, for another role, for a last turn that is not the user's, for text
                   that holds a control token or another special token, and for a tokenizer that lacks the control tokens,
                   truncates or pads.
    """
    turns = check_turns(turns)
    if thinking and empty_thought:
        raise ValueError("thinking and empty_thought: expected one of them or none, got both")
    if tokenizer.truncation or tokenizer.padding:
        raise ValueError(
            "the tokenizer truncates or pads: expected one that does neither; call its no_truncation() and no_padding()"
        )
    control = {name: _control_id(tokenizer, name) for name in (BOS, TURN, END_OF_TURN, THINK, THOUGHT, END_OF_THOUGHT)}
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def plain(text: str, where: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found = [name for name, i in (control | special).items() if i in ids]
        if found:
            raise ValueError(f"{where}: expected text, got the control token {found[0]} in it; take it out")
        return ids

    if thinking and turns[0][0] != "system":
        turns.insert(0, ("system", ""))
    ids = [control[BOS]]
    for number, (role, text) in enumerate(turns):
        ids.append(control[TURN])
        if thinking and role == "system":
            ids += [*plain("system\n", role), control[THINK], *plain(f"\n{text}", f"turn {number}")]
        else:
            ids += plain(f"{role}\n{text}", f"turn {number}")
        ids += [control[END_OF_TURN], *plain("\n", role)]
    ids += [control[TURN], *plain("model\n", "model")]
    return ids + [control[THOUGHT], *plain("thought\n", "model"), control[END_OF_THOUGHT]] * empty_thought


def check_turns(turns: Any) -> list[tuple[str, str]]:
    """The turns of a conversation that the model can answer.  Errors: ValueError for anything else."""
    is_pair = lambda turn: isinstance(turn, (tuple, list)) and [isinstance(part, str) for part in turn] == [True, True]
    are_many = isinstance(turns, Iterable) and not isinstance(turns, (str, bytes, Mapping))
    turns = list(turns) if are_many else [turns]
    for number, turn in enumerate(turns):
        if not is_pair(turn):
            raise ValueError(f'turn {number}: expected a role and a text, such as ("user", "Hello"), got {turn!r:.80}')
        if turn[0] not in ROLES or turn[0] == "system" and number > 0:
            raise ValueError(f"turn {number}: expected user or model (or, as the first, system), got {turn[0]!r}")
    if not turns or turns[-1][0] != "user":
        last = f"the {turns[-1][0]}'s last" if turns else "none"
        raise ValueError(f"turns: expected a user's turn for the model to answer, got {last}")
    return [(role, text) for role, text in turns]


def _control_id(tokenizer: Tokenizer, name: str) -> int:
    if (i := tokenizer.token_to_id(name)) is None:
        raise ValueError(f"the tokenizer has no token {name}: expected that of a Gemma 4 model for chats (-it)")
    return i
