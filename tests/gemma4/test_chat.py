"""Chat turns: the text of the templates, and control tokens, which no turn may contain."""

import inspect
import re

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from decoding.training.text import train_tokenizer
from gemma4.chat import BOS, END_OF_THOUGHT, END_OF_TURN, THINK, THOUGHT, TURN, Answer, chat, check_turns, read_answer
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
            [("system", " Be brief.\n"), ("user", "A"), ("model", "B"), ("user", "\n C\n")],
            {"thinking": True},
            "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nA<turn|>\n<|turn>model\nB<turn|>\n"
            "<|turn>user\nC<turn|>\n<|turn>model\n",
        ),
        (  # thoughts of earlier turns go, also one that was cut off, and what follows a stray end stays
            [
                *[("user", "A"), ("model", "<|channel>thought\nhm\n<channel|>\nB <|channel>more<channel|>C ")],
                *[
                    ("user", "D"),
                    ("assistant", "E<|channel>thought\nhm"),
                    ("user", "F"),
                    ("model", " G<channel|>H"),
                    ("user", "I"),
                ],
            ],
            {},
            "<bos><|turn>user\nA<turn|>\n<|turn>model\nB C<turn|>\n<|turn>user\nD<turn|>\n<|turn>model\nE<turn|>\n"
            "<|turn>user\nF<turn|>\n<|turn>model\nGH<turn|>\n<|turn>user\nI<turn|>\n<|turn>model\n",
        ),
        (  # neighbouring turns of the model are one; those of the user are not; a later system turn is a turn
            [
                *[
                    ("developer", "S"),
                    ("user", "A"),
                    ("assistant", "B "),
                    ("model", " C"),
                    ("user", "D"),
                    ("user", "E"),
                ],
                *[("system", "T"), ("user", "")],
            ],
            {},
            "<bos><|turn>system\nS<turn|>\n<|turn>user\nA<turn|>\n<|turn>model\nBC<turn|>\n<|turn>user\nD<turn|>\n"
            "<|turn>user\nE<turn|>\n<|turn>system\nT<turn|>\n<|turn>user\n<turn|>\n<|turn>model\n",
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
        ([("tool", "Hi"), *HELLO], {}, "turn 0: expected one of the roles system, developer, user, .* got 'tool'"),
        (
            [*HELLO, ("system", "Be brief.")],
            {},
            "expected a user's turn for the model to answer, got the system's last",
        ),
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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hello, world", Answer("", "Hello, world")),
        ("<|channel>thought\nHello\n<channel|>world<turn|>", Answer("Hello", "world")),
        ("<|channel>thought\n<channel|>world", Answer("", "world")),
        ("<|channel>thought\nHello, wor", Answer("Hello, wor", "")),
        ("Hello<|channel>a<channel|>, <|channel>b<channel|>world", Answer("ab", "Hello, world")),
        ("", Answer("", "")),
    ],
)
def test_thought_and_answer(tokenizer, text, answer):
    special = Tokenizer.from_str(tokenizer.to_str())
    special.add_special_tokens([END_OF_TURN])
    ids = special.encode(text, add_special_tokens=False).ids
    assert read_answer(special, ids) == answer


def test_a_tokenizer_of_transformers(tokenizer):
    transformers = pytest.importorskip("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert chat(wrapped, HELLO) == chat(tokenizer, HELLO)
    with pytest.raises(ValueError, match="tokenizer: expected a tokenizers.Tokenizer.* got a str"):
        inspect.unwrap(chat)("tokenizer.json", HELLO)
