"""Text to train on: from files to documents, a few of them held out; a tokenizer; token ids."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gemma4 import Config
from gemma4.checkpoints.directories import kind_of

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0..3, as in Gemma's own tokenizer
PAD, EOS, BOS, UNK = range(4)
MOST_CHARACTERS = 4000  # of a document that is cut out of a file
LEAST_DOCUMENTS = 20  # a short text is cut into shorter documents, so that some of them can be held out
HELD_OUT_ONE_IN = 10


class Corpus(NamedTuple):
    train: list[str]
    held_out: list[str]


def read_corpus(files: Sequence[str | os.PathLike]) -> Corpus:
    """The documents of text files; every tenth is held out.

    A document ends at a blank line, or where there is none at the end of a line; it has up to MOST_CHARACTERS, and more only
    if a line has.  Errors: ValueError that names a file which is missing, no text in UTF-8, or empty; ValueError for a text too
    short to hold anything out.
    """
    texts = [_read(Path(file)) for file in files]
    size = min(MOST_CHARACTERS, sum(map(len, texts)) // LEAST_DOCUMENTS)
    documents = [document for text in texts for document in cut(text, max(size, 1))]
    corpus = Corpus([], [])
    for number, document in enumerate(documents):
        is_held_out = number % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN // 2
        (corpus.held_out if is_held_out else corpus.train).append(document)
    if not corpus.held_out:
        raise ValueError(
            f"--text: expected a text that can be cut at line breaks into {HELD_OUT_ONE_IN // 2 + 1} documents or more, one of "
            f"them to be held out, got {len(documents)}; give more text"
        )
    return corpus


def cut(text: str, size: int) -> list[str]:
    """Documents of up to `size` characters, cut at blank lines if possible, else at line breaks.  Joined they are the text."""
    documents, current = [], ""
    for paragraph in re.findall(r".+?(?:\n\s*\n|\Z)", text, re.DOTALL):
        for piece in [paragraph] if len(paragraph) <= size else paragraph.splitlines(keepends=True):
            if current and len(current) + len(piece) > size:
                documents.append(current)
                current = ""
            current += piece
    return [document for document in [*documents, current] if document]


def _read(file: Path) -> str:
    if not file.is_file():  # opening a FIFO may wait forever
        found = kind_of(file) if os.path.lexists(file) else "nothing"
        raise ValueError(f"--text {file}: expected a text file, got {found}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {file}: expected UTF-8, got another byte at {error.start}; convert it") from error
    if not text.strip():
        raise ValueError(f"--text {file}: is empty: expected a text")
    return text


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: every text has an encoding, and decoding it gives the same bytes back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str], eos: int | None = EOS) -> list[np.ndarray]:
    """The ids of each document, with `eos` at the end if there is one."""
    end = [] if eos is None else [eos]
    encoded = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [np.array([*encoding.ids, *end], np.int32) for encoding in encoded]


def bos_of(config: Config) -> int:
    """Errors: ValueError for a model without a BOS token, which each window of text begins with."""
    if config.bos_token_id is None:
        raise ValueError("config.json: has no bos_token_id; expected one, because each window of text begins with it")
    return config.bos_token_id


def eos_of(config: Config) -> int | None:
    return config.eos_token_ids[0] if config.eos_token_ids else None
