"""Tiny models for all tests: the five layouts, a smaller pair that compiles in seconds, and a whole pair on disk.

The five layouts are those of the oracle (`decoding/oracle/tiny.py`).  The properties of decoding hold for every target and
every drafter, so they are tested where a mistake shows soonest: the text of a `restless` target depends on the whole cache.
"""

import dataclasses
import functools
from pathlib import Path

import drafter
import gemma4
from decoding.bench.subject import Subject
from decoding.oracle.tiny import (
    TINY,
    TINY_DRAFTERS,
    VOCAB,
    WINDOW,
    random_drafter,
    random_target,
    random_tokens,
    restless,
)
from decoding.training.text import train_tokenizer
from drafter import Drafter
from drafter.config import config_for
from gemma4 import Config, Gemma4
from gemma4.config import FULL, SLIDING

__all__ = ["TINY", "TINY_DRAFTERS", "VOCAB", "WINDOW", "random_drafter", "random_target", "random_tokens", "restless"]

CENTROIDS = 4
CLUSTERED = ("E2B", "E4B")  # layouts whose drafter has the clustered head
SENTENCES = ["In the beginning God created the heaven and the earth.\n", "Ünïcödé: αβγ, 東京, 🙂 and “quotes”.\n"] * 4


def drafter_config(target: Config, *, clustered: bool) -> drafter.Config:
    """A small drafter for any target."""
    clusters = (CENTROIDS, 2) if clustered else None
    return config_for(target, width=20, mlp=28, heads=target.num_attention_heads, clusters=clusters)


def write_pair(directory: Path, vocab_size: int = 320) -> None:
    """`directory`/target, with a byte-level tokenizer.json, and `directory`/drafter, in Hugging Face layout.

    Few layers, because many tests compile this pair.
    """
    config = dataclasses.replace(
        TINY["E2B"],
        vocab_size=vocab_size,
        vocab_size_per_layer_input=vocab_size,
        layer_types=(SLIDING, FULL, FULL),
        num_kv_shared_layers=1,
    )
    small = drafter_config(config, clustered=True)
    text = dataclasses.replace(small.text, layer_types=(SLIDING, FULL), num_kv_shared_layers=2)
    gemma4.export_hf(random_target(config), directory / "target")
    drafter.export_hf(random_drafter(dataclasses.replace(small, text=text), seed=1), directory / "drafter")
    tokenizer = train_tokenizer(SENTENCES, vocab_size)
    tokenizer.save(str(directory / "target" / "tokenizer.json"))


# -- a pair of one sliding and one full layer --------------------------------------------------------------------------

SMALL_WINDOW, SMALL_CONTEXT, SMALL_VOCAB = 6, 64, 16
SMALL = Config(
    vocab_size=SMALL_VOCAB,
    hidden_size=12,
    intermediate_size=16,
    layer_types=(SLIDING, FULL),
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    global_head_dim=8,
    sliding_window=SMALL_WINDOW,
    max_position_embeddings=SMALL_CONTEXT,
)


@functools.cache
def small_target(seed: int = 18) -> Gemma4:
    """Of the first forty seeds, this one has the most varied texts."""
    return restless(random_target(SMALL, seed))


@functools.cache
def small_drafter(seed: int = 0, convention: str = "transformers") -> Drafter:
    config = drafter_config(SMALL, clustered=False)
    text = dataclasses.replace(config.text, layer_types=SMALL.layer_types, num_kv_shared_layers=2)
    return random_drafter(dataclasses.replace(config, text=text, convention=convention), seed)


@functools.cache
def small_subject() -> Subject:
    """The pair for benchmarks to measure."""
    return Subject("a small pair", small_target(), small_drafter(), texts=[])
