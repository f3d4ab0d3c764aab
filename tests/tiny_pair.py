"""A drafter of random weights for each tiny target, and a whole pair on disk: target, clustered drafter, tokenizer."""

import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import drafter
import gemma4
from decoding.pairs.corpus import train_tokenizer
from drafter.config import config_for
from gemma4.config import FULL, SLIDING
from gemma4.storage import abstract, named_params, with_params
from tests.tiny import TINY, random_target

CENTROIDS = 4
SENTENCES = ["In the beginning God created the heaven and the earth.\n", "Ünïcödé: αβγ, 東京, 🙂 and “quotes”.\n"] * 4


def drafter_config(target: gemma4.Config, *, clustered: bool) -> drafter.Config:
    clusters = (CENTROIDS, 2) if clustered else None
    return config_for(target, width=20, mlp=28, heads=target.num_attention_heads, clusters=clusters)


def random_drafter(config: drafter.Config, seed: int = 1, dtype: jnp.dtype = jnp.float32) -> drafter.Drafter:
    """No weight is neutral, and the clusters hold the tokens in an order of their own."""
    blank = abstract(drafter.Drafter, config, dtype)
    rng = np.random.default_rng(seed)
    draw = functools.partial(_draw, rng)
    return with_params(blank, {name: draw(name, leaf) for name, leaf in named_params(blank).items()})


def _draw(rng: np.random.Generator, name: str, leaf) -> jnp.ndarray:
    if name.endswith("token_ordering"):
        return jnp.asarray(rng.permutation(leaf.size), leaf.dtype)
    if name.endswith("layer_scalar"):
        return jnp.asarray(rng.uniform(0.3, 1.1, leaf.shape), leaf.dtype)
    if "norm" in name:
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
    width = leaf.shape[-1] if name.startswith("embed_tokens") else leaf.shape[0]
    return jnp.asarray(rng.normal(0, width**-0.5, leaf.shape), leaf.dtype)


def write_pair(directory: Path, vocab_size: int = 320) -> None:
    """`directory`/target, with a byte-level tokenizer.json, and `directory`/drafter, in Hugging Face layout.

    As few layers as E2B's layout can have, for what is tested with a pair on disk compiles it again and again.
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
    drafter.export_hf(random_drafter(dataclasses.replace(small, text=text)), directory / "drafter")
    tokenizer = train_tokenizer(SENTENCES, vocab_size)
    tokenizer.save(str(directory / "target" / "tokenizer.json"))
