"""What a person sees, piece by piece: text that is never garbled, colours and marks that say where it came from."""

import io

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from decoding import Round, Stats
from decoding.bench.generate_timing import Figures, Speed
from decoding.cli.console import Origin, Printer, TextStream, print_baseline, print_counts, use_color
from decoding.cli.timings import print_figures
from decoding.training.text import EOS, train_tokenizer

GAMMA = 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["In the beginning\n"] * 3, 300)


def bytes_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte."""
    return [id for character in text for id in tokenizer.encode(character).ids]


# -- text as it comes --------------------------------------------------------------------------------------------------


def test_characters_come_whole_and_at_once(tokenizer):
    text = "a é東\n🙂z"
    stream, shown = TextStream(tokenizer), []
    for token in bytes_of(tokenizer, text):
        shown.append(stream.push(token))
    assert [piece for piece in shown if piece] == list(text)
    assert [len(piece) for piece in shown] == [1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1], "with the last byte of each"
    assert stream.end() == ""


@pytest.mark.parametrize("seed", range(5))
def test_pieces_joined_are_the_decoded_text(tokenizer, seed):
    ids = np.random.default_rng(seed).integers(0, 300, 200).tolist()  # hardly ever valid UTF-8
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.end() == tokenizer.decode(ids)


LETTERS = ["▁a", "b", "▁", "é", "東", "\ufffd", "<0x", "<0x4>"]
DECODERS = {
    "Gemma's": [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
    "Llama's": [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
}


def byte_fallback_tokenizer(decoder: str) -> Tokenizer:
    """Two special tokens, those letters, and a token a byte; as ids the bytes come last."""
    names = ["<bos>", "<eos>", *LETTERS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(DECODERS[decoder])
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return tokenizer


@pytest.mark.parametrize("decoder", DECODERS)
def test_pieces_of_byte_fallback_joined_are_the_decoded_text(decoder):
    """Bytes of whole and of broken characters, with other tokens, special ones and unknown ids between them."""
    tokenizer, rng = byte_fallback_tokenizer(decoder), np.random.default_rng(0)
    first_byte, unknown = 2 + len(LETTERS), 2 + len(LETTERS) + 256
    for _ in range(2000):
        ids: list[int] = []
        while len(ids) < rng.integers(1, 12):
            character = [first_byte + byte for byte in str(rng.choice(list("aé東🙂"))).encode()]
            anything = [int(rng.integers(0, unknown + 1))]
            other = [int(rng.choice([*range(first_byte), unknown]))]
            ids += [character, character[: rng.integers(1, 4)], other, anything][rng.integers(4)]
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.end() == tokenizer.decode(ids), ids


def test_a_run_of_bytes_is_shown_when_it_has_ended():
    tokenizer = byte_fallback_tokenizer("Gemma's")
    first, second, b = (tokenizer.token_to_id(name) for name in ("<0xC3>", "<0xA9>", "b"))
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (b, first, second, b)] == ["b", "", "", "éb"]
    assert [stream.push(token) for token in (first, second)] == ["", ""]
    assert stream.preview([b]) == "b", "not the character that is certain already"
    assert stream.push(first) == "" and stream.end() == "\ufffd\ufffd\ufffd" == tokenizer.decode([first, second, first])


def test_half_a_character_at_the_end(tokenizer):
    ids = bytes_of(tokenizer, "é")[:1]
    stream = TextStream(tokenizer)
    assert stream.push(ids[0]) == "" and stream.end() == "\ufffd" == tokenizer.decode(ids)


def test_special_tokens_have_no_text(tokenizer):
    stream = TextStream(tokenizer)
    assert stream.push(EOS) == "" and stream.end() == ""


def test_decoder_that_looks_at_what_stands_before():
    tokenizer = Tokenizer(models.WordLevel({"▁In": 0, "▁the": 1}, unk_token="▁In"))
    tokenizer.decoder = decoders.Metaspace()  # strips the first space only
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (0, 1, 1)] == ["In", " the", " the"]


def test_preview_changes_nothing(tokenizer):
    stream = TextStream(tokenizer)
    first, second = bytes_of(tokenizer, "é")
    stream.push(first)
    assert stream.preview([second, *bytes_of(tokenizer, "x")]) == "éx"
    assert stream.push(second) == "é"


# -- rounds ------------------------------------------------------------------------------------------------------------


def prefill(token: int) -> Round:
    tokens = np.array([[token] + [0] * GAMMA])
    return Round(tokens[:, 1:], np.array([0]), tokens, np.array([1]))


def round_of(draft: list[int], num_accepted: int, own: int, num_emitted: int | None = None) -> Round:
    tokens = [*draft[:num_accepted], own, *draft[num_accepted:]]
    num_emitted = num_accepted + 1 if num_emitted is None else num_emitted
    return Round(np.array([draft]), np.array([num_accepted]), np.array([tokens]), np.array([num_emitted]))


def shown(tokenizer, rounds, **settings) -> str:
    out = io.StringIO()
    printer = Printer(out, tokenizer, **{"marks": True, **settings})
    printer.prompt("P:")
    for last in rounds:
        printer.round(last)
    printer.end()
    return out.getvalue()


@pytest.fixture
def abc(tokenizer):
    """Ids of single letters."""
    return {letter: tokenizer.encode(letter).ids[0] for letter in "abcdefgh"} | {"é": bytes_of(tokenizer, "é")}


def test_marks(tokenizer, abc):
    a, b, c, d, e, f, g, h = (abc[letter] for letter in "abcdefgh")
    rounds = [prefill(a), round_of([b, c, d], 2, e), round_of([b, c, d], 0, f), round_of([b, c, d], 3, g)]
    assert shown(tokenizer, rounds) == "P:[a]bc[e][f]bcd[g]\n"
    assert shown(tokenizer, rounds, show_rejected=True) == "P:[a]bc{d}[e]{bcd}[f]bcd[g]\n"


def test_without_marks_the_plain_text(tokenizer, abc):
    a, b, c, d, e = (abc[letter] for letter in "abcde")
    rounds = [prefill(a), round_of([b, c, d], 2, e)]
    assert shown(tokenizer, rounds, marks=False, show_rejected=True) == "P:abce\n", (
        "rejected drafts would look like text"
    )


def test_colours(tokenizer, abc):
    a, b, c, d, e = (abc[letter] for letter in "abcde")
    rounds = [prefill(a), round_of([b, c, d], 2, e)]
    dim, own, green, red = ("\x1b[2m{}\x1b[0m", "\x1b[1;35m{}\x1b[0m", "\x1b[32m{}\x1b[0m", "\x1b[9;31m{}\x1b[0m")
    expected = dim.format("P:") + own.format("a") + green.format("bc")
    assert shown(tokenizer, rounds, color=True) == expected + own.format("e") + "\n"
    expected += red.format("d") + own.format("e") + "\n"
    assert shown(tokenizer, rounds, color=True, show_rejected=True) == expected


def test_baseline_has_no_marks(tokenizer, abc):
    rounds = [prefill(abc["a"]), Round(np.zeros((1, 0), int), np.array([0]), np.array([[abc["b"]]]), np.array([1]))]
    for color in (False, True):
        assert shown(tokenizer, rounds, is_baseline=True, show_rejected=True, color=color).endswith("ab\n")


@pytest.mark.parametrize("num_emitted", [1, 2])
def test_text_that_ends_inside_a_run_rejects_nothing(tokenizer, abc, num_emitted):
    a, b, c, d, e = (abc[letter] for letter in "abcde")
    rounds = [prefill(a), round_of([b, c, d], 2, e, num_emitted)]
    assert shown(tokenizer, rounds, show_rejected=True) == f"P:[a]{'bc'[:num_emitted]}\n"


def test_prefill_rejects_nothing(tokenizer, abc):
    assert shown(tokenizer, [prefill(abc["a"])], show_rejected=True) == "P:[a]\n"


def test_split_character_goes_with_its_last_token(tokenizer, abc):
    (first, second), a, b = abc["é"], abc["a"], abc["b"]
    rounds = [prefill(first), round_of([second, a, b], 1, first), round_of([a, a, a], 0, second)]
    assert shown(tokenizer, rounds) == "P:é[é]\n"
    rounds = [prefill(a), round_of([a, b, first], 3, second)]
    assert shown(tokenizer, rounds, show_rejected=True) == "P:[a]ab[é]\n", "all accepted: nothing was rejected"
    rounds = [prefill(a), round_of([b, first, a], 2, first)]
    assert shown(tokenizer, rounds) == "P:[a]b[\ufffd\ufffd]\n", "the end of the text lets go of what is held back"


def test_half_a_character_at_the_end_keeps_its_origin(tokenizer, abc):
    (first, _), a, b = abc["é"], abc["a"], abc["b"]
    assert shown(tokenizer, [prefill(a), round_of([b, first, a], 2, a, num_emitted=2)]) == "P:[a]b\ufffd\n"


def test_text_held_back_is_not_taken_for_rejected():
    tokenizer = Tokenizer(models.BPE(vocab={"aâ": 0, "b": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()  # token 0 is "a" and the first byte of a character
    rounds = [prefill(1), round_of([1, 1, 0], 3, 1)]
    assert shown(tokenizer, rounds, show_rejected=True) == "P:[b]bb[a\ufffdb]\n"


def test_half_a_rejected_character_is_left_out(tokenizer, abc):
    (first, _), a = abc["é"], abc["a"]
    rounds = [prefill(a), round_of([a, a, first], 1, a)]
    assert shown(tokenizer, rounds, show_rejected=True) == "P:[a]a{a}[a]\n"


def test_line_breaks_stand_outside_marks(tokenizer, abc):
    newline, a = tokenizer.encode("\n").ids[0], abc["a"]
    rounds = [prefill(a), round_of([a, newline, a], 0, newline), round_of([newline, a, a], 2, a)]
    assert shown(tokenizer, rounds, show_rejected=True) == "P:[a]{a\\na}[]\n\na{a}[a]\n"
    assert Printer(io.StringIO(), tokenizer, marks=True).segment(Origin.OWN, "\n2 b\n") == "\n[2 b]\n"


def test_control_characters_are_spelt_out(tokenizer):
    rounds = [prefill(tokenizer.encode("\x1b").ids[0])]
    assert shown(tokenizer, rounds) == "P:[\\x1b]\n"
    printer = Printer(io.StringIO(), tokenizer)
    assert printer.segment(Origin.ACCEPTED, "\t\x07~\x7f\x9b\xa0é") == "\t\\x07~\\x7f\\x9b\xa0é"


def test_without_a_tokenizer_the_ids(tokenizer):
    assert shown(None, [prefill(7), round_of([1, 2, 3], 1, 9)], show_rejected=True) == "P:[7 ]1 {2 3 }[9 ]\n"


def test_each_round_is_out_before_the_next(tokenizer, abc):
    class Flushed(io.StringIO):
        seen = ""

        def flush(self):
            self.seen = self.getvalue()

    out = Flushed()
    printer = Printer(out, tokenizer, marks=True)
    for letter, expected in zip("ab", ("[a]", "[a][b]"), strict=True):
        printer.round(prefill(abc[letter]))
        assert out.seen == expected


@pytest.mark.parametrize("color", [False, True])
def test_legend_explains_what_is_used(tokenizer, color):
    legend = Printer(io.StringIO(), tokenizer, color=color, marks=True, show_rejected=True).legend()
    assert legend.count("\n") == 1
    assert ("[the target's own], {drafted and rejected}" in legend) != color
    assert ("\x1b[1;35mthe target's own\x1b[0m" in legend) == color
    assert "rejected" not in Printer(io.StringIO(), tokenizer, color=color, marks=True).legend()
    assert Printer(io.StringIO(), tokenizer).legend() == "", "plain text has nothing to explain"


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_when_colours_are_used(is_terminal, environment, expected, monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: is_terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert use_color(out) is expected


# -- the table ---------------------------------------------------------------------------------------------------------

STATS = Stats(rounds=4, drafted=12, accepted=6, emitted=11, prompts=1, reached=[3, 2, 1], tried=[4] * 3)
STAGES = {"draft": 0.00125, "verify": 0.0025, "accept": 0.0002, "rollback": 0.00005}


def table(figures: Figures | None, color: bool = False) -> str:
    out = io.StringIO()
    print_counts(out, STATS, GAMMA)
    if figures:
        print_figures(out, figures, color=color)
    return out.getvalue()


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


COUNTS = ["tokens per round 2.50 of at most 4", "accepted, by draft position 1: 75% 2: 50% 3: 25%"]


def test_counts():
    assert [" ".join(line.split()) for line in table(None).splitlines()] == COUNTS


@pytest.mark.parametrize("columns", [30, 45])
def test_a_narrow_terminal_hides_nothing(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = table(None)
    assert sorted(text.split()) == sorted(" ".join(COUNTS).split()) and max(map(len, text.splitlines())) <= columns


def test_table():
    text = table(Figures(Speed(200.0, 0.005), Speed(500.0, 0.0051), STAGES))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[:7] == [
        *COUNTS,
        "ms for each stage draft 1.25 verify 2.50 accept 0.20 rollback 0.05",
        "ms for a whole round 5.10",
        "speculative 500 tokens/s",
        "autoregressive 200 tokens/s",
        "speed-up 2.50 x",
    ]
    caption = " ".join(text.split())
    assert "both loops compiled beforehand" in caption and "Stages: each compiled alone" in caption
    assert "\x1b" not in text
    values = zip(text.splitlines()[:5], ["2.50", "1:", "draft", "5.10", "500"], strict=True)
    assert len({line.index(value) for line, value in values}) == 1, (
        "counts and figures line up, though they are printed one after the other"
    )


def test_table_of_a_text_of_one_token():
    text = table(Figures(None, None, STAGES))
    assert text.count("not measured: the text ended with its first token") == 2
    assert "speed-up" not in text and "whole round" not in text.split("Measured")[0]


def test_caption_is_dim_in_colour():
    figures = Figures(Speed(200.0, 0.005), Speed(500.0, 0.0051), STAGES)
    assert "\x1b[2mMeasured after the text" in table(figures, color=True)


def test_baseline_lines():
    out = io.StringIO()
    print_baseline(out, STATS)
    assert out.getvalue() == "\nautoregressive: 11 tokens\n"
    print_figures(out, Figures(Speed(200.0, 0.005)), color=False)
    assert out.getvalue().endswith("tokens\nautoregressive: 200 tokens/s (compiled beforehand, without the prefill)\n")
