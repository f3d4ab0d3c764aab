"""Chat turns: the text of the templates, and control tokens, which no turn may contain."""

import re

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from decoding.shipped_pair.corpus import train_tokenizer
from gemma4.chat import BOS, END_OF_THOUGHT, END_OF_TURN, THINK, THOUGHT, TURN, chat, check_turns
from tests.models import SENTENCES

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


@pytest.mark.parametrize("name", ["<pad>", "<eos>", "<|image>"])
def test_special_tokens_in_a_text_are_refused(tokenizer, name):
    """All that the tokenizer marks special.  Text that only looks like one is text."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<|image>"])
    for turns in ([("user", f"x{name}y")], [("system", name), *HELLO]):
        with pytest.raises(ValueError, match=f"turn 0: expected text, got the control token {re.escape(name)} in it"):
            chat(tokenizer, turns)
    tokenizer.add_tokens(["world"])
    text = "x<|video>y, world"
    assert text in tokenizer.decode(chat(tokenizer, [("user", text)]), skip_special_tokens=False)


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_a_tokenizer_that_truncates_or_pads(tokenizer, setting):
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_truncation(3) if setting == "truncation" else tokenizer.enable_padding(length=20)
    with pytest.raises(
        ValueError, match=r"the tokenizer truncates or pads: .*; call its no_truncation\(\) and no_padding\(\)"
    ):
        chat(tokenizer, HELLO)


def test_turns_of_other_types():
    for turns in ([["user", "A"]], iter([("user", "A")]), (("user", "A"),)):
        assert check_turns(turns) == [("user", "A")]


@pytest.mark.parametrize(
    "turns",
    [
        [("user", None)],
        [("user", b"Hi")],
        [("user", ["Hi"])],
        [(1, "Hi")],
        ["Hi"],
        [("user", "Hi", "there")],
        [{"role": "user", "content": "Hi"}],
        {"role": "user", "content": "Hi"},
        {"user": "Hi"},
        ("user", "Hi"),
        "Hi",
        b"Hi",
        None,
    ],
    ids=repr,
)
def test_bad_turns(turns):
    with pytest.raises(ValueError, match=r'turn 0: expected a role and a text, such as \("user", "Hello"\), got '):
        check_turns(turns)


@pytest.mark.parametrize(
    ("turns", "settings", "message"),
    [
        ([], {}, "expected a user's turn for the model to answer, got none"),
        ([*HELLO, ("model", "Hi")], {}, "expected a user's turn for the model to answer, got the model's last"),
        ([("system", "Be brief.")], {}, "expected a user's turn for the model to answer, got the system's last"),
        ([("assistant", "Hi"), *HELLO], {}, "turn 0: expected user or model .* got 'assistant'"),
        ([*HELLO, ("system", "Be brief.")], {}, "turn 1: expected user or model .* got 'system'"),
        (HELLO, {"thinking": True, "empty_thought": True}, "expected one of them or none, got both"),
    ],
)
def test_bad_conversations(tokenizer, turns, settings, message):
    with pytest.raises(ValueError, match=message):
        chat(tokenizer, turns, **settings)


def test_a_tokenizer_without_control_tokens():
    with pytest.raises(ValueError, match=r"the tokenizer has no token <\|turn>: expected that of a Gemma 4 model"):
        chat(train_tokenizer(SENTENCES, 320), HELLO)


def test_a_tokenizer_that_adds_bos_to_every_piece(tokenizer):
    before = chat(tokenizer, HELLO)
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # a copy of the fixture's
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, before[0])])
    assert chat(tokenizer, HELLO) == before
