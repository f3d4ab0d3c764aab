"""Stop strings: where a text ends, round by round."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

import decoding
from decoding.generation import LOOPS
from decoding.state import Round
from decoding.stop import StopStrings
from decoding.training.text import train_tokenizer
from tests.models import SENTENCES, small_drafter, small_target


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, 320)


def rounds_of(tokenizer, texts: list[str], size: int) -> list[Round]:
    """Rounds that emit `size` tokens of each text at a time."""
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    rounds = []
    for start in range(0, max(map(len, ids)), size):
        tokens = np.zeros((len(ids), size), np.int32)
        parts = [row[start : start + size] for row in ids]
        for row, part in enumerate(parts):
            tokens[row, : len(part)] = part
        counts = np.array(list(map(len, parts)), np.int32)
        rounds.append(Round(tokens[:, 1:], np.maximum(counts - 1, 0), tokens, counts))
    return rounds


def round_of(ids: list[int]) -> Round:
    tokens = np.array([ids], np.int32)
    return Round(tokens[:, 1:], np.array([len(ids) - 1]), tokens, np.array([len(ids)]))


def texts_of(tokenizer, rounds) -> list[str]:
    rows = [[] for _ in rounds[0].num_emitted]
    for last in rounds:
        for row, tokens, count in zip(rows, last.tokens, last.num_emitted, strict=True):
            row.extend(tokens[:count].tolist())
    return [tokenizer.decode(row) for row in rows]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("stop", ["and", "d t", "é", "n"])
def test_a_text_ends_with_the_token_that_completes_a_stop_string(tokenizer, stop, size):
    """However many tokens a round emits.  A row without one goes on; rows stop each at its own place."""
    texts = ["one and two and three and four", "nothing of it, café and the like", "xyz"]
    cut = texts_of(tokenizer, list(StopStrings(stop, tokenizer).cut(iter(rounds_of(tokenizer, texts, size)))))
    for text, kept in zip(texts, cut, strict=True):
        assert text.startswith(kept)
        if stop not in text:
            assert kept == text
            continue
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        first = next(n for n in range(len(ids) + 1) if stop in tokenizer.decode(ids[:n]))
        assert kept == tokenizer.decode(ids[:first])


def test_tokens_without_text_inside_a_stop_string(tokenizer):
    """Special tokens, and ids that the tokenizer lacks: any number of them, in each place."""
    special, unknown = tokenizer.token_to_id("<pad>"), 10_000
    ids = tokenizer.encode("one and two", add_special_tokens=False).ids
    inside = [i for token in ids for i in (token, *[special] * 30, *[unknown] * 30)]
    stop = StopStrings("e and", tokenizer)
    (last,) = stop.cut(iter([round_of(inside)]))
    assert tokenizer.decode(last.tokens[0, : last.num_emitted[0]].tolist()) == "one and"


def test_characters_of_many_byte_tokens():
    """A run of byte-fallback tokens is text only as a whole, so the tail that is decoded must not begin inside a character."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    bytewise = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    bytewise.decoder = decoders.ByteFallback()
    text = "東" * 9 + "é"
    (last,) = StopStrings("é", bytewise).cut(iter([round_of([*text.encode(), 65, 65])]))
    assert last.num_emitted[0] == len(text.encode())


def test_no_round_runs_after_all_rows_have_stopped(tokenizer):
    rounds = iter(rounds_of(tokenizer, ["stop here, and no further"] * 2, 1))
    list(StopStrings(["here", "zebra"], tokenizer).cut(rounds))
    assert len(list(rounds)) > 3


@pytest.mark.parametrize("loop", LOOPS)
def test_of_a_generation(tokenizer, loop):
    """The text is a prefix of the one without; the counts are those of what is left."""
    prompt, settings = [[2, 9, 4], [7, 1, 1]], {"max_new_tokens": 30, "loop": loop, "draft_length": 3}
    whole = decoding.generate(small_target(), small_drafter(5), prompt, **settings)
    stop = tokenizer.decode(whole.tokens[0][10:12].tolist())
    out = decoding.generate(
        small_target(), small_drafter(5), prompt, **settings, stop_strings=stop, tokenizer=tokenizer
    )
    assert stop and stop in tokenizer.decode(out.tokens[0].tolist())
    assert len(out.tokens[0]) <= 12 and out.stats.emitted == sum(map(len, out.tokens))
    for kept, text in zip(out.tokens, whole.tokens, strict=True):
        np.testing.assert_array_equal(kept, text[: len(kept)])


@pytest.mark.parametrize(
    ("strings", "given", "message"),
    [
        ("", True, "stop_strings: expected strings of at least one character"),
        (["a", 3], True, "stop_strings: expected strings of at least one character"),
        ("a", False, r"tokenizer: expected the pair's tokenizer \(decoding.load_pair\(\) returns it\)"),
    ],
)
def test_bad_settings(tokenizer, strings, given, message):
    with pytest.raises(ValueError, match=message):
        StopStrings(strings, tokenizer if given else None)
