"""The parameter tree of google-deepmind/gemma, tensor by tensor, beside our parameters; `checkpoint.py` reads by it.

Source: google-deepmind/gemma 4.0.1, `gm/nn/gemma4` (`_modules.py`, `_moe.py`), a Flax Linen model of E2B, E4B, 26B-A4B and
31B.  That the table is right was seen by running that model and ours on the same randomly drawn trees, a small one of each of
the four layouts, in float32: logits are equal within 2e-5 of the largest.  Exchanging K and V, gate and up, the norms of the
two branches, or the order of heads, layers or experts' rows moves them by half the largest or more.

One difference no table can hold: 4.0.1 gives the router the row that `pre_ffw_norm` has normed already.  Later commits
(58650904) give it the raw one, as transformers does and as is done here.  26B-A4B is equal when both see the same row.

Names are paths in the tree, joined by slashes.  A last part `w` is left out here, for one tensor may have it or not: the model
calls it `layer_0/mlp/linear`; the released files hold `layer_0/mlp/linear/w`, say the notes of mogemma, which list them.  Two
older trees that the package can also read, flat (`transformer/layer_0/...`) and stacked, are unknown here.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange

from gemma4.config import Config

# Each tensor: an einops pattern from the axes there to the axes here, and our name; two names where it holds two of ours.
# Axes: v vocabulary, d width of the model, l layers, p width of the per-layer inputs, n query heads, k KV heads, h head size,
# f width of the MLP, e experts, m width of an expert, pair: key and value, or gate and up.  RMSNorm's scale multiplies as it
# is there, too: nothing is added to it.
Table = Mapping[str, tuple[str, ...]]

EMBEDDING = "embedder/input_embedding"
WHOLE: Table = {
    EMBEDDING: ("v d -> v d", "embed_tokens.weight"),
    "final_norm/scale": ("d -> d", "norm.weight"),
}
PER_LAYER_INPUTS: Table = {
    "embedder/per_layer_embeddings": ("v l p -> v (l p)", "per_layer_inputs.embed_tokens_per_layer.weight"),
    "embedder/per_layer_model_projection": ("d l p -> d (l p)", "per_layer_inputs.per_layer_model_projection.weight"),
    "embedder/per_layer_projection_norm/scale": ("p -> p", "per_layer_inputs.per_layer_projection_norm.weight"),
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
OWN_INPUT: Table = {
    "per_layer_input_gate": ("d p -> d p", "per_layer_input_gate.weight"),
    "per_layer_projection": ("p d -> p d", "per_layer_projection.weight"),
    "post_per_layer_input_norm/scale": ("d -> d", "post_per_layer_input_norm.weight"),
}

OTHER = ("vision_encoder/", "audio_encoder/", "embedder/mm_", "embedder/audio_")
KV_WEIGHT = re.compile(r"layer_(\d+)/attn/(kv_einsum|k_einsum|key_norm/scale)")


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
        table |= KEY_NORM | (KEY_AND_VALUE if config.has_v_proj(layer) else KEY_AS_VALUE)
    return table | (OWN_INPUT if config.hidden_size_per_layer_input else {})


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
