"""The model under test: a pair from its directories, or a released layout, scaled down and filled with random weights."""

import dataclasses
import functools
import json
import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from decoding import fast
from decoding.load import SHIPPED, load_pair
from drafter import Drafter
from drafter import config as drafter_config
from gemma4 import PRESETS, Config, Gemma4
from gemma4.checkpoints.params import linear_weights, named_params, shape_only, with_params
from gemma4.config import FULL, SLIDING

# Not a released size: small enough for a laptop, and large enough that the products of a step take more time than the calls.
FIFTY_MILLION = Config(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=2048,
    layer_types=2 * (SLIDING, SLIDING, SLIDING, SLIDING, FULL),
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=64,
    global_head_dim=128,
    num_kv_shared_layers=5,
    hidden_size_per_layer_input=64,
    vocab_size_per_layer_input=8192,
    max_position_embeddings=131_072,
)
LAYOUTS: dict[str, tuple[Config, drafter_config.Config]] = {
    **{name: (config, drafter_config.PRESETS[name]) for name, config in PRESETS.items()},
    "50M": (
        FIFTY_MILLION,
        drafter_config.config_for(FIFTY_MILLION, width=128, mlp=256, heads=4, clusters=(128, 16)),
    ),
}


Module = TypeVar("Module", bound=nnx.Module)


class Subject(NamedTuple):
    """A pair and its texts.  The models are as loaded; `for_backend` gives them the twins that `generate` runs."""

    name: str
    target: Gemma4
    draft_model: Drafter
    texts: list[list[int]]  # token ids, whose beginnings are the prompts; empty: prompts are drawn at random

    def for_backend(self) -> "Subject":
        return self._replace(target=fast.for_backend(self.target), draft_model=fast.for_backend(self.draft_model))


def from_directories(target: str | None, draft_model: str | None, dtype: str) -> Subject:
    """A pair with its own weights; the shipped pair also has text held out of its training.  Errors: as `load_pair`."""
    pair = load_pair(target, draft_model, dtype)
    texts = []
    if target is None:
        assert pair.tokenizer is not None, "the shipped pair has one"
        texts = held_out(pair.tokenizer, pair.target.config)
    name = "the shipped pair" if target is None else str(target)
    return Subject(name, pair.target, pair.draft_model, texts)


def held_out(tokenizer: Tokenizer, config: Config) -> list[list[int]]:
    """Chapters held out of the shipped pair's training, each with BOS first."""
    chapters, bos = json.loads((SHIPPED / "held_out.json").read_text(encoding="utf-8")), config.bos_token_id
    assert bos is not None, "the shipped pair has a BOS token"
    return [[bos, *encoding.ids] for encoding in tokenizer.encode_batch(chapters)]


def from_preset(name: str, scale: float, dtype: str, seed: int = 0) -> Subject:
    """Random weights in the layout `name`, all widths multiplied by `scale`.  Errors: ValueError for an unknown name."""
    if name not in LAYOUTS:
        raise ValueError(f"--preset {name}: expected one of {', '.join(LAYOUTS)}")
    target, draft_model = LAYOUTS[name] if scale == 1 else shrunk(*LAYOUTS[name], scale)
    label = f"{name}, random weights" + ("" if scale == 1 else f", widths times {scale:g}")
    return Subject(
        label,
        random_weights(shape_only(Gemma4, target, dtype), seed),
        random_weights(shape_only(Drafter, draft_model, dtype), seed),
        texts=[],
    )


def shrunk(target: Config, draft_model: drafter_config.Config, scale: float) -> tuple[Config, drafter_config.Config]:
    """All widths times `scale`, head dim and vocabulary included; the numbers of layers, heads and experts and the window stay.

    Errors: ValueError unless 0 < scale <= 1.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"--scale: expected a number over 0 and up to 1, got {scale:g}")
    return (
        _narrower(target, scale, draft_model.num_centroids),
        dataclasses.replace(
            draft_model,
            text=_narrower(draft_model.text, scale, draft_model.num_centroids),
            backbone_hidden_size=_width(target.hidden_size, scale, 64),
        ),
    )


def _narrower(config: Config, scale: float, clusters: int) -> Config:
    multiples = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "head_dim": 16,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 16,
        "vocab_size": clusters,
        "vocab_size_per_layer_input": clusters,
    }
    return dataclasses.replace(
        config, **{field: _width(getattr(config, field), scale, multiple) for field, multiple in multiples.items()}
    )


def _width(full: int, scale: float, multiple: int) -> int:
    return multiple * math.ceil(full * scale / multiple)  # 0 stays 0: the layout has no such part


def random_weights(blank: Module, seed: int) -> Module:
    """`blank`, which holds shapes only, filled leaf by leaf, so that the peak of memory is little more than the model."""
    linear, key = linear_weights(blank), jax.random.key(seed)

    def fill(name: str, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            if jnp.issubdtype(leaf.dtype, jnp.integer):  # a clustered head's token ordering
                return jax.random.permutation(key, leaf.shape[0]).astype(leaf.dtype)
            return jnp.ones(leaf.shape, leaf.dtype)
        inputs = leaf.shape[0] if name in linear else leaf.shape[-1]
        return _normal(key, leaf.shape, leaf.dtype, inputs**-0.5)

    params = named_params(blank)
    keys = jax.random.split(key, len(params))
    return with_params(
        blank, {name: fill(name, leaf, key) for (name, leaf), key in zip(params.items(), keys, strict=True)}
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, deviation: float) -> jax.Array:
    return jax.random.normal(key, shape, dtype) * jnp.asarray(deviation, dtype)


def prompts(subject: Subject, count: int, tokens: int, ragged: int = 1) -> list[list[int]]:
    """`count` prompts: beginnings of the subject's texts, which are used in order and repeated, or tokens drawn at random.

    ragged: of so many prompts in a row the first has `tokens` tokens, and each next one about a sixteenth fewer.
    A text of fewer tokens is used whole.
    """
    lengths = [max(1, tokens - i % ragged * tokens // 16) for i in range(count)]
    if subject.texts:
        return [subject.texts[i % len(subject.texts)][:length] for i, length in enumerate(lengths)]
    rng = np.random.default_rng(0)
    return [rng.integers(3, subject.target.config.vocab_size, length).tolist() for length in lengths]
