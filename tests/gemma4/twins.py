"""The decoder once more, in NumPy and float64, one token at a time: what the tests of the model's parts compare with.

Written from the definition: a token looks at the tokens before it by their positions, with no cache, no mask and no batch.
`weights` are a module's parameters by name, as the module stores them (linear weights [in, out]).
"""

import math
from collections.abc import Mapping

import numpy as np
from flax import nnx

from gemma4 import Config
from gemma4.checkpoints.params import named_params

Weights = Mapping[str, np.ndarray]


def weights_of(module: nnx.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_params(module).items()}


def under(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """The parameters of a submodule."""
    return {name.removeprefix(f"{prefix}."): value for name, value in weights.items() if name.startswith(f"{prefix}.")}


def norm(x: np.ndarray, weight: np.ndarray | float, eps: float) -> np.ndarray:
    return x / math.sqrt(sum(value * value for value in x) / len(x) + eps) * weight


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def rope(head: np.ndarray, position: int, theta: float, factor: float) -> np.ndarray:
    """One head at one position: pair i is (x[i], x[i + h/2])."""
    half, out = len(head) // 2, head.copy()
    for i in range(int(factor * half)):
        angle = position * theta ** (-2 * i / len(head))
        out[i] = head[i] * math.cos(angle) - head[i + half] * math.sin(angle)
        out[i + half] = head[i + half] * math.cos(angle) + head[i] * math.sin(angle)
    return out


def key_value(config: Config, layer: int, weights: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of the tokens x [t, d]: [t, kv_heads, head_dim] each."""
    _, theta, factor = rope_of(config, layer)
    keys, values = [], []
    for position, token in enumerate(x):
        raw = (token @ weights["k_proj.weight"]).reshape(kv_heads_of(config, layer), -1)
        k_eq_v = config.attention_k_eq_v and layer_is_full(config, layer)
        raw_value = raw if k_eq_v else (token @ weights["v_proj.weight"]).reshape(raw.shape)
        normed = [norm(head, weights["k_norm.weight"], config.rms_norm_eps) for head in raw]
        keys.append([rope(head, position, theta, factor) for head in normed])
        values.append([norm(head, 1.0, config.rms_norm_eps) for head in raw_value])
    return np.array(keys), np.array(values)


def layer_is_full(config: Config, layer: int) -> bool:
    return config.layer_types[layer] == "full_attention"


def rope_of(config: Config, layer: int) -> tuple[int, float, float]:
    """Head size, theta and share of rotating pairs, from the fields: not by `Config.rope`, which the model uses."""
    if layer_is_full(config, layer):
        return config.global_head_dim, config.full_rope_theta, config.partial_rotary_factor
    return config.head_dim, config.sliding_rope_theta, 1.0


def kv_heads_of(config: Config, layer: int) -> int:
    if layer_is_full(config, layer) and config.attention_k_eq_v:
        return config.num_global_key_value_heads
    return config.num_key_value_heads


def attention(
    config: Config, layer: int, weights: Weights, x: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Grouped-query attention of the tokens x [t, d] over keys and values, position by position."""
    head_dim, theta, factor = rope_of(config, layer)
    per_kv_head = config.num_attention_heads // kv_heads_of(config, layer)
    window = math.inf if layer_is_full(config, layer) else config.sliding_window
    outs = []
    for position, token in enumerate(x):
        heads = (token @ weights["q_proj.weight"]).reshape(-1, head_dim)
        visible = [s for s in range(position + 1) if position - s < window]
        out = []
        for n, head in enumerate(heads):
            query = rope(norm(head, weights["q_norm.weight"], config.rms_norm_eps), position, theta, factor)
            k = n // per_kv_head
            probs = softmax(np.array([query @ keys[s, k] for s in visible]))
            out.append(sum(p * values[s, k] for p, s in zip(probs, visible, strict=True)))
        outs.append(np.concatenate(out) @ weights["o_proj.weight"])
    return np.array(outs)


def mlp(weights: Weights, token: np.ndarray) -> np.ndarray:
    gate, up = token @ weights["gate_proj.weight"], token @ weights["up_proj.weight"]
    return (gelu(gate) * up) @ weights["down_proj.weight"]


def router(config: Config, weights: Weights, residual: np.ndarray) -> dict[int, float]:
    """Weight of each expert that the token visits."""
    x = norm(residual, weights["scale"], config.rms_norm_eps) / math.sqrt(len(residual))
    probs = softmax(x @ weights["proj.weight"])
    best = sorted(range(len(probs)), key=lambda e: -probs[e])[: config.top_k_experts]
    total = sum(probs[e] for e in best)
    return {e: probs[e] / total * weights["per_expert_scale"][e] for e in best}


def experts(weights: Weights, token: np.ndarray, choice: Mapping[int, float]) -> np.ndarray:
    out = np.zeros_like(token)
    for e, weight in choice.items():
        gate, up = np.split(weights["gate_up_proj"][e] @ token, 2)
        out += weight * (weights["down_proj"][e] @ (gelu(gate) * up))
    return out


def per_layer_inputs(config: Config, weights: Weights, token_id: int, embedding: np.ndarray) -> np.ndarray:
    """[layers, width] of one token."""
    width = config.hidden_size_per_layer_input
    identity = weights["embed_tokens_per_layer.weight"][token_id] * math.sqrt(width)
    projected = embedding @ weights["per_layer_model_projection.weight"] / math.sqrt(config.hidden_size)
    out = []
    for layer in range(config.num_hidden_layers):
        of_layer = slice(layer * width, (layer + 1) * width)
        context = norm(projected[of_layer], weights["per_layer_projection_norm.weight"], config.rms_norm_eps)
        out.append((context + identity[of_layer]) / math.sqrt(2))
    return np.array(out)


def decoder_layer(
    config: Config,
    layer: int,
    weights: Weights,
    x: np.ndarray,
    per_layer_input: np.ndarray | None,
    kv: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """One layer over the tokens x [t, d]; kv: what a layer that shares K/V reads, None for an owner."""

    def normed(name: str, token: np.ndarray) -> np.ndarray:
        return norm(token, weights[f"{name}.weight"], config.rms_norm_eps)

    inputs = np.array([normed("input_layernorm", token) for token in x])
    own = under(weights, "self_attn")
    kv = key_value(config, layer, own, inputs) if kv is None else kv
    attended = attention(config, layer, own, inputs, *kv)
    outs = []
    for t, token in enumerate(x):
        token = token + normed("post_attention_layernorm", attended[t])
        update = mlp(under(weights, "mlp"), normed("pre_feedforward_layernorm", token))
        if config.enable_moe_block:
            choice = router(config, under(weights, "router"), token)
            mixture = experts(under(weights, "experts"), normed("pre_feedforward_layernorm_2", token), choice)
            update = normed("post_feedforward_layernorm_1", update) + normed("post_feedforward_layernorm_2", mixture)
        token = token + normed("post_feedforward_layernorm", update)
        if per_layer_input is not None:
            gated = gelu(token @ weights["per_layer_input_gate.weight"]) * per_layer_input[t]
            token = token + normed("post_per_layer_input_norm", gated @ weights["per_layer_projection.weight"])
        outs.append(token * weights["layer_scalar"][0])
    return np.array(outs), kv


def hidden_and_logits(config: Config, weights: Weights, token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The whole decoder: hidden states [t, d] after the final norm, and logits [t, v]."""
    table = weights["embed_tokens.weight"]
    x = np.array([table[i] * math.sqrt(config.hidden_size) for i in token_ids])
    ple = None
    if config.hidden_size_per_layer_input:
        own = under(weights, "per_layer_inputs")
        ple = np.array([per_layer_inputs(config, own, i, e) for i, e in zip(token_ids, x, strict=True)])
    last_of_type: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for layer, kind in enumerate(config.layer_types):
        is_owner = layer < config.num_hidden_layers - config.num_kv_shared_layers
        given = None if is_owner else last_of_type[kind]
        per_layer_input = None if ple is None else ple[:, layer]
        x, kv = decoder_layer(config, layer, under(weights, f"layers.{layer}"), x, per_layer_input, given)
        if is_owner:
            last_of_type[kind] = kv
    hidden = np.array([norm(token, weights["norm.weight"], config.rms_norm_eps) for token in x])
    cap = config.final_logit_softcapping
    logits = hidden @ table.T
    return hidden, logits if cap is None else cap * np.tanh(logits / cap)
