"""Texts of tokens, byte-level and with byte fallback."""

import re

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from decoding.trace.tokens import BYTES, token_texts
from tests.models import SENTENCES


def test_bytes_that_are_no_character_are_written_out(pair_dir):
    tokenizer = Tokenizer.from_file(str(pair_dir / "target" / "tokenizer.json"))
    ids = tokenizer.encode("東 the\n", add_special_tokens=False).ids
    texts = [token_texts(tokenizer, [i])[str(i)] for i in ids]
    written = "".join(texts)
    assert "\n" in written and " the" in written and "\ufffd" not in written
    single = [i for i in ids if "<0x" in token_texts(tokenizer, [i])[str(i)]]
    assert single, "the tiny vocabulary has this character in pieces"
    raw = bytes(int(pair, 16) for pair in re.findall("<0x(..)>", written))
    assert raw and raw == "東".encode()


def test_a_byte_fallback_token_keeps_its_name():
    tokenizer = Tokenizer(
        BPE(vocab={"<0xE2>": 0, "▁a": 1, "<unk>": 2}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert token_texts(tokenizer, [0, 1]) == {"0": "<0xE2>", "1": " a"}


def test_without_a_text():
    assert token_texts(None, [7, 7, 3]) == {"3": "#3", "7": "#7"}


def test_special_tokens_and_ids_outside_the_vocabulary(pair_dir):
    tokenizer = Tokenizer.from_file(str(pair_dir / "target" / "tokenizer.json"))
    texts = token_texts(tokenizer, [2, 99999])
    assert texts == {"2": tokenizer.id_to_token(2), "99999": "#99999"}


def test_the_byte_table_is_one_to_one():
    assert sorted(BYTES.values()) == list(range(256))
    assert SENTENCES and BYTES["Ġ"] == ord(" ") and BYTES["Ċ"] == ord("\n") and BYTES["A"] == 65
