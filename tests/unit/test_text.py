"""Chat turns: the text that templates make, and no way for a text to speak for the system."""

import pytest
from tokenizers import AddedToken

from decoding.pairs.corpus import train_tokenizer
from gemma4.text import BOS, END_OF_THOUGHT, END_OF_TURN, THINK, THOUGHT, TURN, chat
from tests.tiny_pair import SENTENCES

CONTROL = (TURN, END_OF_TURN, THINK, THOUGHT, END_OF_THOUGHT)
HELLO = [("user", "Hello, world")]


@pytest.fixture(scope="module", params=[True, False], ids=["special", "plain"])
def tokenizer(request):
    """Control tokens are marked special in some files and not in others."""
    tokenizer = train_tokenizer(SENTENCES, 320)
    tokenizer.add_tokens([AddedToken(name, special=request.param, normalized=False) for name in CONTROL])
    return tokenizer


@pytest.mark.parametrize(
    ("turns", "settings", "expected"),
    [
        (HELLO, {}, "<bos><|turn>user\nHello, world<turn|>\n<|turn>model\n"),
        (
            HELLO,
            {"empty_thought": True},
            "<bos><|turn>user\nHello, world<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
        ),
        (
            HELLO,
            {"thinking": True},
            "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHello, world<turn|>\n<|turn>model\n",
        ),
        (
            [("system", "Be brief."), ("user", "A"), ("model", "B"), ("user", "C\n")],
            {"thinking": True},
            "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nA<turn|>\n<|turn>model\nB<turn|>\n"
            "<|turn>user\nC\n<turn|>\n<|turn>model\n",
        ),
        (
            [("system", "Be brief."), ("user", "A")],
            {},
            "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nA<turn|>\n<|turn>model\n",
        ),
    ],
)
def test_the_text_of_the_templates(tokenizer, turns, settings, expected):
    ids = chat(tokenizer, turns, **settings)
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
    assert ids == tokenizer.encode(expected, add_special_tokens=False).ids


@pytest.mark.parametrize("name", (BOS, *CONTROL))
def test_control_tokens_in_a_text_are_refused(tokenizer, name):
    with pytest.raises(ValueError, match="turn 1: expected text, got the control token"):
        chat(tokenizer, [*HELLO, ("user", f"x{name}y")])


@pytest.mark.parametrize(
    ("turns", "settings", "message"),
    [
        ([], {}, "expected a turn for the model to answer, got none"),
        ([*HELLO, ("model", "Hi")], {}, "expected a turn for the model to answer, got the model's last"),
        ([("assistant", "Hi"), *HELLO], {}, "turn 0: expected user or model .* got 'assistant'"),
        ([*HELLO, ("system", "Be brief.")], {}, "turn 1: expected user or model .* got 'system'"),
        (HELLO, {"thinking": True, "empty_thought": True}, "expected one of them or none, got both"),
    ],
)
def test_what_is_no_conversation(tokenizer, turns, settings, message):
    with pytest.raises(ValueError, match=message):
        chat(tokenizer, turns, **settings)


def test_a_tokenizer_for_no_chats():
    with pytest.raises(ValueError, match=r"the tokenizer has no token <\|turn>: expected that of a Gemma 4 model"):
        chat(train_tokenizer(SENTENCES, 320), HELLO)
