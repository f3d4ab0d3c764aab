"""Text to train on: what is cut, what is held out, what is refused."""

import numpy as np
import pytest

from decoding.training.text import EOS, HELD_OUT_ONE_IN, cut, encode, read_corpus, train_tokenizer

PARAGRAPHS = [f"Paragraph {number}: " + "word " * number + "\n\n" for number in range(40)]
TEXT = "".join(PARAGRAPHS)


@pytest.mark.parametrize(
    "text", [TEXT, TEXT.replace("\n\n", "\n"), "no line break " * 50, "\n\nbegins\n\n\n\nblank\n", "x"]
)
@pytest.mark.parametrize("size", [1, 60, 200, 10**6])
def test_documents_joined_are_the_text(text, size):
    documents = cut(text, size)
    assert "".join(documents) == text and all(documents)
    assert all(len(document) <= size or "\n" not in document.strip("\n") for document in documents)


def test_blank_lines_come_first():
    assert cut("one\ntwo\n\nthree\nfour\n", 12) == ["one\ntwo\n\n", "three\nfour\n"]
    assert cut("one\ntwo\nthree\n\nfour", 12) == ["one\ntwo\n", "three\n\nfour"]


def test_a_tenth_is_held_out(tmp_path):
    for name, text in (("a.txt", TEXT), ("b.txt", TEXT.upper())):
        (tmp_path / name).write_text(text, encoding="utf-8")
    corpus = read_corpus([tmp_path / "a.txt", tmp_path / "b.txt"])
    total = len(corpus.train) + len(corpus.held_out)
    assert len(corpus.held_out) == round(total / HELD_OUT_ONE_IN) >= 2
    assert sorted("".join(corpus.train + corpus.held_out)) == sorted(TEXT + TEXT.upper())
    assert corpus == read_corpus([tmp_path / "a.txt", tmp_path / "b.txt"])


def test_what_is_no_text(tmp_path):
    (tmp_path / "bytes").write_bytes(b"abc\xff")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "short").write_text("One line.")
    for name, message in (
        ("none", "none: expected a text file, got nothing"),
        (".", "expected a text file, got a directory"),
        ("bytes", "expected UTF-8, got another byte at 3"),
        ("empty", "is empty"),
        ("short", "expected a text that can be cut at line breaks into 6 documents or more"),
    ):
        with pytest.raises(ValueError, match=message):
            read_corpus([tmp_path / name])


def test_ids_end_with_eos_if_there_is_one():
    tokenizer = train_tokenizer([TEXT], 300)
    (with_eos,), (without,) = encode(tokenizer, [TEXT]), encode(tokenizer, [TEXT], None)
    np.testing.assert_array_equal(with_eos, [*without, EOS])
    assert tokenizer.decode(without) == TEXT
