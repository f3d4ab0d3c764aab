"""Checkpoints of google-deepmind/gemma, in only: its parameter tree, tensor by tensor, beside our parameters.

Such a checkpoint is the folder that Orbax wrote.  It has no `config.json`; the shapes tell which of the released sizes it is.
For a model of another size, put its `config.json` (Hugging Face layout) into the folder.

Source: google-deepmind/gemma 4.0.1, `gm/nn/gemma4` (`_modules.py`, `_moe.py`), a Flax Linen model of E2B, E4B, 26B-A4B and
31B.  The table was checked by running that model and this one on the same random trees, a small one of each of the four
layouts, in float32: logits are equal within 2e-5 of the largest.

One difference is outside the table: 4.0.1 gives the router the residual after `pre_ffw_norm`.  Later commits (58650904) give
it the raw residual, as transformers and this project do.  26B-A4B is equal when both see the same input.

Names are paths in the tree, joined by slashes.  A last part `w` is left out, because a tensor may have it or not: the model
calls it `layer_0/mlp/linear`, the released files hold `layer_0/mlp/linear/w` (according to the notes of mogemma).  Two older
trees that the package can also read, flat (`transformer/layer_0/...`) and stacked, are not read here.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from gemma4.checkpoints.directories import CheckpointError, read_config
from gemma4.checkpoints.hf_config import read_target
from gemma4.checkpoints.orbax import orbax_tensors, read_orbax
from gemma4.checkpoints.params import (
    LoadReport,
    check_fits,
    check_tensors,
    float_dtype,
    named_params,
    shape_only,
    shapes,
    shardings_on,
    with_params,
)
from gemma4.config import PRESETS, Config
from gemma4.model import Gemma4

# Each tensor: an einops pattern from the axes there to the axes here, and our name; two names where it holds two of ours.
# Axes: v vocabulary, d width of the model, l layers, p width of the per-layer inputs, n query heads, k KV heads, h head size,
# f width of the MLP, e experts, m width of an expert, pair: key and value, or gate and up.  RMSNorm's scale multiplies as it
# is there, too: nothing is added to it.
Table = dict[str, tuple[str, ...]]

EMBEDDING = "embedder/input_embedding"
WHOLE: Table = {
    EMBEDDING: ("v d -> v d", "embed_tokens.weight"),
    "final_norm/scale": ("d -> d", "norm.weight"),
}
PER_LAYER_INPUTS: Table = {
    "embedder/per_layer_embeddings": ("v l p -> v (l p)", "per_layer_embeddings.embed_tokens_per_layer.weight"),
    "embedder/per_layer_model_projection": (
        "d l p -> d (l p)",
        "per_layer_embeddings.per_layer_model_projection.weight",
    ),
    "embedder/per_layer_projection_norm/scale": ("p -> p", "per_layer_embeddings.per_layer_projection_norm.weight"),
}

# In each layer:
ALWAYS: Table = {
    "pre_attention_norm/scale": ("d -> d", "input_layernorm.weight"),
    "attn/q_einsum": ("n d h -> d (n h)", "self_attn.q_proj.weight"),
    "attn/query_norm/scale": ("h -> h", "self_attn.q_norm.weight"),
    "attn/attn_vec_einsum": ("n h d -> (n h) d", "self_attn.o_proj.weight"),
    "post_attention_norm/scale": ("d -> d", "post_attention_layernorm.weight"),
    "post_ffw_norm/scale": ("d -> d", "post_feedforward_layernorm.weight"),
    "skip_scale": ("1 -> 1", "layer_scalar"),
}
KEY_NORM: Table = {"attn/key_norm/scale": ("h -> h", "self_attn.k_norm.weight")}
KEY_AND_VALUE: Table = {
    "attn/kv_einsum": ("pair k d h -> pair d (k h)", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
}
KEY_AS_VALUE: Table = {"attn/k_einsum": ("k d h -> d (k h)", "self_attn.k_proj.weight")}
DENSE: Table = {
    "pre_ffw_norm/scale": ("d -> d", "pre_feedforward_layernorm.weight"),
    "mlp/gating_einsum": ("pair f d -> pair d f", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp/linear": ("f d -> f d", "mlp.down_proj.weight"),
}
# Beside experts the dense MLP is `mlp2` and its norms are those with a 2; ours, as Hugging Face's, number them the other way.
MIXTURE: Table = {
    "pre_ffw2_norm/scale": ("d -> d", "pre_feedforward_layernorm.weight"),
    "mlp2/gating_einsum": ("pair f d -> pair d f", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp2/linear": ("f d -> f d", "mlp.down_proj.weight"),
    "post_ffw2_norm/scale": ("d -> d", "post_feedforward_layernorm_1.weight"),
    "mlp/router_scale": ("d -> d", "router.scale"),
    "mlp/router_logits": ("d e -> d e", "router.proj.weight"),
    "mlp/per_expert_scale": ("e -> e", "router.per_expert_scale"),
    "pre_ffw_norm/scale": ("d -> d", "pre_feedforward_layernorm_2.weight"),
    "mlp/gating_einsum": ("e pair m d -> e (pair m) d", "experts.gate_up_proj"),
    "mlp/linear": ("e m d -> e d m", "experts.down_proj"),
    "post_ffw1_norm/scale": ("d -> d", "post_feedforward_layernorm_2.weight"),
}
PER_LAYER_INPUT: Table = {
    "per_layer_input_gate": ("d p -> d p", "per_layer_input_gate.weight"),
    "per_layer_projection": ("p d -> p d", "per_layer_projection.weight"),
    "post_per_layer_input_norm/scale": ("d -> d", "post_per_layer_input_norm.weight"),
}

OTHER = ("vision_encoder/", "audio_encoder/", "embedder/mm_", "embedder/audio_")
KV_WEIGHT = re.compile(r"layer_(\d+)/attn/(kv_einsum|k_einsum|key_norm/scale)")


def load(
    directory: Path, dtype: Any, mesh: Mesh | None, with_end_tokens: Callable[[Config], Config]
) -> tuple[Gemma4, LoadReport]:
    """A target from a folder that google-deepmind/gemma wrote.  `checkpoints/target.py` calls this; errors as there."""
    found = orbax_tensors(directory)
    config, asked_by = _config(directory, found)
    config = with_end_tokens(config)
    blank = shape_only(Gemma4, config, dtype)
    tree = tensors(config)
    keys, report = _text_tensors(found, config)
    check_tensors(shapes(tree), shapes({name: found[key] for name, key in keys.items()}), directory, asked_by)
    for key in report.loaded:
        if not jnp.issubdtype(found[key].dtype, jnp.floating):
            raise CheckpointError(
                f"{directory}: {key} is stored as {found[key].dtype}, expected floats; "
                "quantised checkpoints are not supported"
            )
    wanted = {key: found[key].update(dtype=float_dtype(dtype)) for key in report.loaded}
    check_fits(blank, directory, mesh)
    shardings, params = shardings_on(named_params(blank), mesh), {}
    for key, array in read_orbax(directory, wanted, found):
        parts = tree[plain_name(key)].ours(array)
        placed = {part: jax.device_put(array, shardings[part]) for part, array in parts.items()}
        params |= jax.block_until_ready(placed)  # so that the host holds no more than a few tensors
    return with_params(blank, params), report


def _config(directory: Path, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Config, str]:
    """The configuration, and what `check_tensors` should say of it."""
    if (directory / "config.json").is_file():
        return read_config(directory, read_target), "config.json; are both of the same model?"
    sizes = {(config.vocab_size, config.hidden_size): name for name, config in PRESETS.items()}
    embedding = tensors[EMBEDDING].shape if EMBEDDING in tensors else None
    put = f"put its config.json (Hugging Face layout) into {directory}"
    if embedding in sizes:
        name = sizes[embedding]
        return PRESETS[name], f"{name}, whose embedding table has this size; if it is another model, {put}"
    expected = ", ".join(f"{list(shape)} ({name})" for shape, name in sizes.items())
    raise CheckpointError(
        f"{directory}: a tree of tensors without config.json, so the shape of {EMBEDDING} must tell which model it is: "
        f"expected {expected}, got {'no such tensor' if embedding is None else list(embedding)}; if it is another model in the "
        f"layout of google-deepmind/gemma, {put}"
    )


def _text_tensors(tensors: Mapping[str, jax.ShapeDtypeStruct], config: Config) -> tuple[dict[str, str], LoadReport]:
    """Which tensor is which of the text decoder's, and the report."""
    other = tuple(key for key in tensors if is_other(key))
    unused_kv = tuple(key for key in tensors if is_unused_kv(key, config))
    left_out = {*other, *unused_kv}
    keys = {plain_name(key): key for key in tensors if key not in left_out}
    return keys, LoadReport(tuple(keys.values()), unused_kv, other)


class Tensor(NamedTuple):
    """One tensor of the tree: its shape there, and what it holds of ours."""

    shape: tuple[int, ...]
    pattern: str
    params: tuple[str, ...]

    def ours(self, array: np.ndarray | jax.Array) -> dict[str, np.ndarray | jax.Array]:
        """Our parameters by name."""
        array = rearrange(array, self.pattern)
        return dict(zip(self.params, array if len(self.params) > 1 else (array,), strict=True))


def tensors(config: Config) -> dict[str, Tensor]:
    """All tensors of the text decoder that are read here, by name without `/w`."""
    sizes = {"1": 1, "pair": 2, "v": config.vocab_size, "d": config.hidden_size, "l": config.num_hidden_layers}
    sizes |= {"p": config.hidden_size_per_layer_input, "n": config.num_attention_heads}
    sizes |= {"e": config.num_experts, "m": config.moe_intermediate_size}
    whole = WHOLE | (PER_LAYER_INPUTS if config.hidden_size_per_layer_input else {})
    tree = _with_sizes(whole, sizes)
    for i in range(config.num_hidden_layers):
        sizes |= {"k": config.kv_heads(i), "h": config.layer_head_dim(i), "f": config.mlp_width(i)}
        tree |= _with_sizes(_layer(config, i), sizes, f"layer_{i}/", f"layers.{i}.")
    return tree


def _layer(config: Config, layer: int) -> Table:
    table = ALWAYS | (MIXTURE if config.enable_moe_block else DENSE)
    if layer < config.first_kv_shared_layer:
        table |= KEY_NORM | (KEY_AS_VALUE if config.k_eq_v(layer) else KEY_AND_VALUE)
    return table | (PER_LAYER_INPUT if config.hidden_size_per_layer_input else {})


def _with_sizes(table: Table, sizes: Mapping[str, int], there: str = "", here: str = "") -> dict[str, Tensor]:
    shape = lambda pattern: tuple(sizes[axis] for axis in pattern.split(" -> ")[0].split())
    return {
        there + name: Tensor(shape(pattern), pattern, tuple(here + param for param in params))
        for name, (pattern, *params) in table.items()
    }


def plain_name(name: str) -> str:
    return name.removesuffix("/w")


def is_other(name: str) -> bool:
    """Whether a tensor belongs to vision or audio."""
    return name.startswith(OTHER)


def is_unused_kv(name: str, config: Config) -> bool:
    """Whether a tensor is of K/V that nothing reads: in a layer that shares another's, where the package has them still."""
    kv_weight = KV_WEIGHT.fullmatch(plain_name(name))
    return bool(kv_weight) and config.first_kv_shared_layer <= int(kv_weight[1]) < config.num_hidden_layers
