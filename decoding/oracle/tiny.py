"""The smallest configurations that take every branch of the five released layouts, and models without neutral weights.

Sizes differ from each other where possible (no square matrices, no head size equal to a width), so that a transposed or
mistaken tensor does not fit by chance.  Weights that are initialised with 1 are not 1 here, so that a forgotten norm, scalar
or scale shows.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from drafter import Config as DrafterConfig
from drafter import Drafter
from drafter.config import config_for
from gemma4 import Config, Gemma4
from gemma4.checkpoints.params import named_params, shape_only, with_params
from gemma4.config import FULL, SLIDING

WINDOW = 8
VOCAB = 64

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": WINDOW,
    "max_position_embeddings": 128,
}


def _layers(pattern: str) -> tuple[str, ...]:
    return tuple({"S": SLIDING, "F": FULL}[letter] for letter in pattern)


TINY: dict[str, Config] = {
    # The layers that share K/V have twice the MLP width.  Of the two sliding owners only the last is the donor.
    "E2B": Config(
        **_COMMON,
        layer_types=_layers("SSFSF"),
        num_attention_heads=4,
        num_key_value_heads=1,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=12,
    ),
    # The layers that share K/V have the same MLP width; two KV heads.  Of the two full owners only the last is the donor.
    "E4B": Config(
        **_COMMON,
        layer_types=_layers("SFFSF"),
        num_attention_heads=4,
        num_key_value_heads=2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=12,
    ),
    "12B": Config(
        **_COMMON,
        layer_types=_layers("SSF"),
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
    ),
    "26B-A4B": Config(
        **_COMMON,
        layer_types=_layers("SF"),
        num_attention_heads=8,
        num_key_value_heads=4,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        enable_moe_block=True,
        num_experts=6,
        top_k_experts=2,
        moe_intermediate_size=10,
    ),
    "31B": Config(
        **_COMMON,
        layer_types=_layers("SSF"),
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=4,
        attention_k_eq_v=True,
    ),
}


@functools.cache  # modules are never changed
def random_target(config: Config, seed: int = 0, dtype: DTypeLike = jnp.float32) -> Gemma4:
    """A target with random weights: logits spread over several units, and no weight is neutral.

    Norms and scales are in 0.5 .. 1.5, layer scalars in 0.3 .. 1.1, per-expert scales in 0.4 .. 1.6.
    """
    blank = shape_only(Gemma4, config, dtype)
    rng = np.random.default_rng(seed)
    draw = functools.partial(_draw, rng, config)
    return with_params(
        blank, {name: jnp.asarray(draw(name, leaf.shape), dtype) for name, leaf in named_params(blank).items()}
    )


def _draw(rng: np.random.Generator, config: Config, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("layer_scalar"):
        return rng.uniform(0.3, 1.1, shape)
    if name.endswith("per_expert_scale"):
        return rng.uniform(0.4, 1.6, shape)
    if "norm" in name or name.endswith("router.scale"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith("embed_tokens.weight"):
        return rng.normal(0, 3 * config.hidden_size**-0.5, shape)  # logits have a standard deviation of about 3
    if name.endswith("embed_tokens_per_layer.weight"):
        return rng.normal(0, config.hidden_size_per_layer_input**-0.5, shape)
    if name.endswith("router.proj.weight"):
        return rng.normal(0, 2, shape)  # after the router's 1/sqrt(d): scores two units apart
    if name.endswith("per_layer_input_gate.weight"):
        # Larger ones give gates that are 0 after the GELU; where all of a token's are, the next norm amplifies rounding.
        return rng.normal(0, 0.3 * config.hidden_size**-0.5, shape)
    inputs = shape[-1] if "experts" in name else shape[0]  # experts are stored [expert, out, in]
    return rng.normal(0, inputs**-0.5, shape)


def restless(target: Gemma4, factor: float = 10.0) -> Gemma4:
    """The same target with stronger layers.  Without this the residual stream repeats the newest token forever."""
    post_norms = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    params = named_params(target)
    return with_params(target, {name: params[name] * factor for name in params if name.endswith(post_norms)})


def random_tokens(batch: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, batch, time]).integers(0, VOCAB, (batch, time))


# -- drafters ----------------------------------------------------------------------------------------------------------


def drafter_config(target: Config, *, heads: int, clustered: bool = False, layers: str = "SSSF") -> DrafterConfig:
    """A drafter that fits `target`."""
    clusters = (target.vocab_size // 4, 3) if clustered else None
    return config_for(target, width=20, mlp=28, heads=heads, clusters=clusters, layers=_layers(layers))


TINY_DRAFTERS: dict[str, DrafterConfig] = {
    "E2B": drafter_config(TINY["E2B"], heads=2, clustered=True),
    "E4B": drafter_config(TINY["E4B"], heads=6, clustered=True),
    "12B": drafter_config(TINY["12B"], heads=6),
    "26B-A4B": drafter_config(TINY["26B-A4B"], heads=4),
    "31B": drafter_config(TINY["31B"], heads=8),
}


@functools.cache
def random_drafter(config: DrafterConfig, seed: int = 0, dtype: DTypeLike = jnp.float32) -> Drafter:
    """A drafter with random weights as in `random_target`.  Its token ordering is a permutation that is not its own inverse."""
    blank = shape_only(Drafter, config, dtype)
    rng = np.random.default_rng([seed, 1])
    params = {}
    for name, leaf in named_params(blank).items():
        if name.endswith("token_ordering"):
            ordering = rng.permutation(config.text.vocab_size)
            assert (ordering[ordering] != np.arange(config.text.vocab_size)).any()
            params[name] = jnp.asarray(ordering, jnp.int32)
        else:
            params[name] = jnp.asarray(_draw(rng, config.text, name, leaf.shape), dtype)
    return with_params(blank, params)
