"""`gemma4-mtp chat`: what a conversation on the terminal shows."""

import io

import pytest

import decoding
import drafter
import gemma4
from decoding.cli import chat as chat_command
from decoding.cli.console import harmless
from decoding.cli.main import main
from decoding.conversation import Conversation
from gemma4.chat import END_OF_THOUGHT, THOUGHT
from tests.decoding.test_conversation import pair


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> list[str]:
    target, draft_model, tokenizer = pair()
    parent = tmp_path_factory.mktemp("chat")
    gemma4.export_hf(target, parent / "target")
    (parent / "target" / "tokenizer.json").write_text(tokenizer.to_str())
    drafter.export_hf(draft_model, parent / "drafter")
    return ["--target", str(parent / "target"), "--drafter", str(parent / "drafter"), "--max-new-tokens", "12"]


def typed(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_conversation(directories, monkeypatch, capsys):
    """Each line is a turn; the answers are those of `Conversation`; commands are no turns."""
    typed(monkeypatch, "Hello\n\n/thoughts\n/nonsense\nAnd then?\n/reset\nHello\n/exit\nnever\n")
    assert main(["chat", *directories]) == 0
    this, expected = Conversation(*pair(), max_new_tokens=12), []
    for text in ("Hello", "And then?"):
        list(this.reply(text))
        expected.append(this.answer.text)
    lines = capsys.readouterr().out
    shown = lines.replace("(thoughts are shown)\n", "").replace("(no command /nonsense; /help lists them)\n", "")
    assert len(shown) + 2 < len(lines)
    assert any(expected)
    for answer in (expected[0], expected[1], expected[0]):
        before, found, shown = shown.partition(harmless(answer))
        assert found == harmless(answer) and not before.strip()


@pytest.mark.parametrize("shows", [True, False])
def test_thoughts_are_shown_or_hidden(monkeypatch, shows):
    """By an answer that thinks first."""
    target, draft_model, tokenizer = pair()
    text = f"{THOUGHT}thought\nHello, world{END_OF_THOUGHT}The answer"
    ids = tokenizer.encode(text, add_special_tokens=False).ids

    def reply(self, text):
        for token in ids:
            yield decoding.Round(*map(__import__("numpy").array, ([[]], [0], [[token]], [1])))

    monkeypatch.setattr(Conversation, "reply", reply)
    out = io.StringIO()
    chat_command.answer(Conversation(target, draft_model, tokenizer), "Hi", out, shows)
    assert out.getvalue() == ("thought\nHello, worldThe answer\n" if shows else "The answer\n")


def test_ctrl_c_ends_an_answer_and_not_the_conversation(monkeypatch):
    target, draft_model, tokenizer = pair()
    this, reply = Conversation(target, draft_model, tokenizer, max_new_tokens=12), Conversation.reply

    def interrupted(self, text):
        rounds = reply(self, text)
        try:
            yield next(rounds)
            raise KeyboardInterrupt
        finally:
            rounds.close()

    monkeypatch.setattr(Conversation, "reply", interrupted)
    out = io.StringIO()
    chat_command.answer(this, "Hello", out, False)
    assert out.getvalue().endswith("\n") and [role for role, _ in this.turns] == ["user", "model"]


def test_a_turn_that_the_template_refuses(directories, monkeypatch, capsys):
    """One line, and the conversation goes on."""
    typed(monkeypatch, "a <|turn> b\nHello\n")
    assert main(["chat", *directories]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("(turn 0: expected text, got the control token <|turn> in it; take it out)\n") and len(out) > 80
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--temperature", "-1"], "temperature: expected a number from 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected at least 1, got 0"),
        (["--draft-length", "40"], "draft_length: expected 0 to 32"),
        (["--thinking", "--empty-thought"], "thinking and empty_thought: expected one of them or none, got both"),
        (["--target", "/nowhere"], "/nowhere"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(directories, capsys, settings, message):
    assert main(["chat", *directories, *settings]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1


def test_a_pair_for_no_chat(pair_dir, capsys):
    assert main(["chat", "--target", str(pair_dir / "target"), "--drafter", str(pair_dir / "drafter")]) == 2
    assert (
        "the tokenizer has no token <|turn>: expected that of a Gemma 4 model for chats (-it)"
        in capsys.readouterr().err
    )
