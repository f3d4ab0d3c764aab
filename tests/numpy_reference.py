"""Gemma 4 in NumPy and float64, written from the definitions, with loops and one text at a time: what the tests compare with.

No cache and no batch: a text is [t, d], and the token at index t has position t.  Weights are looked up by their names in a
dict (`weights_of`).  Only their layout is the project's: [in, out] for linear maps, [expert, out, in] for experts.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from flax import nnx

from gemma4.checkpoints.params import named_params
from gemma4.config import Config

Weights = dict[str, np.ndarray]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, scale, shape).astype(np.float32)


def assert_close(ours, reference: np.ndarray, tolerance: float, what: str = "") -> None:
    """Within `tolerance` of the largest magnitude in `reference`."""
    ours = np.asarray(ours).astype(np.float64)
    assert ours.shape == reference.shape, f"{what}: {ours.shape}, {reference.shape} expected"
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance * np.abs(reference).max(), err_msg=what)


def weights_of(module: nnx.Module) -> Weights:
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_params(module).items()}


def part(weights: Weights, prefix: str) -> Weights:
    """The weights under `prefix`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in weights.items() if name.startswith(f"{prefix}.")}


# -- formulas ----------------------------------------------------------------------------------------------------------


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    out = np.empty(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        row = x[index].astype(np.float64)
        out[index] = row / math.sqrt(sum(v * v for v in row) / len(row) + eps)
    return out if weight is None else out * weight.astype(np.float64)


def rope_frequencies(head_dim: int, theta: float, rotary_factor: float) -> list[float]:
    pairs, rotating = head_dim // 2, int(rotary_factor * (head_dim // 2))
    return [theta ** (-2 * i / head_dim) if i < rotating else 0.0 for i in range(pairs)]


def rotate(x: np.ndarray, position: int, frequencies: Sequence[float]) -> np.ndarray:
    """RoPE of one head.  Pair i is (x[i], x[i + h/2]): the real and the imaginary part of a number that rotates."""
    out, half = np.empty(len(x)), len(x) // 2
    for i, frequency in enumerate(frequencies):
        angle = position * frequency
        rotated = complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = rotated.real, rotated.imag
    return out


def softmax(scores: Sequence[float]) -> np.ndarray:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return np.array(exponentials) / sum(exponentials)


def gelu(x: np.ndarray) -> np.ndarray:
    values = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.reshape(-1).tolist()]
    return np.array(values).reshape(x.shape)


def visible_keys(position: int, window: int | None) -> list[int]:
    """The positions that the token at `position` sees."""
    return list(range(0 if window is None else max(0, position - window + 1), position + 1))


def masked_attention(query, key, value, mask, round_score: Callable[[float], float] = float) -> np.ndarray:
    """`functional.attention`, query by query, over the slots that the mask shows; scores are rounded by `round_score`."""
    batch, time, heads, _ = query.shape
    group = heads // key.shape[1]
    out = np.zeros(query.shape)
    for b, t, n in np.ndindex(batch, time, heads):
        slots = np.flatnonzero(mask[b, t])
        scores = [float(round_score(query[b, t, n].astype(np.float64) @ key[b, n // group, s])) for s in slots]
        probs = softmax(scores)
        out[b, t, n] = sum(p * value[b, n // group, s].astype(np.float64) for p, s in zip(probs, slots, strict=True))
    return out


# -- settings of a layer, from the fields of `Config`: its methods are what the model uses ------------------------------


def is_full(config: Config, layer: int) -> bool:
    return config.layer_types[layer] == "full_attention"


def rope_of(config: Config, layer: int) -> tuple[int, float, float]:
    """Head size, theta, and the share of pairs that rotate."""
    if is_full(config, layer):
        return config.global_head_dim, config.full_rope_theta, config.partial_rotary_factor
    return config.head_dim, config.sliding_rope_theta, 1.0


def window_of(config: Config, layer: int) -> int | None:
    return None if is_full(config, layer) else config.sliding_window


# -- the parts of a decoder layer --------------------------------------------------------------------------------------


def key_value(weights: Weights, config: Config, layer: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys and values that a layer computes for a text, [t, KV head, h] each."""
    head_dim, eps, time = rope_of(config, layer)[0], config.rms_norm_eps, len(x)
    frequencies = rope_frequencies(*rope_of(config, layer))
    raw_key = (x @ weights["k_proj.weight"]).reshape(time, -1, head_dim)
    if config.attention_k_eq_v and is_full(config, layer):
        raw_value = raw_key
    else:
        raw_value = (x @ weights["v_proj.weight"]).reshape(time, -1, head_dim)
    key = rms_norm(raw_key, weights["k_norm.weight"], eps)
    for t, head in np.ndindex(*key.shape[:2]):
        key[t, head] = rotate(key[t, head], t, frequencies)
    return key, rms_norm(raw_value, None, eps)


def attention(
    weights: Weights, config: Config, layer: int, x: np.ndarray, key: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """The attention module's output for a text, over the given keys and values of the same text."""
    head_dim, heads, time = rope_of(config, layer)[0], config.num_attention_heads, len(x)
    frequencies = rope_frequencies(*rope_of(config, layer))
    query = rms_norm(
        (x @ weights["q_proj.weight"]).reshape(time, heads, head_dim), weights["q_norm.weight"], config.rms_norm_eps
    )
    queries_per_kv_head = heads // key.shape[1]
    out = np.empty((time, heads, head_dim))
    for t, head in np.ndindex(time, heads):
        rotated, kv_head = rotate(query[t, head], t, frequencies), head // queries_per_kv_head
        seen = visible_keys(t, window_of(config, layer))
        probs = softmax([float(rotated @ key[s, kv_head]) for s in seen])  # no division by sqrt(h)
        out[t, head] = sum(p * value[s, kv_head] for p, s in zip(probs, seen, strict=True))
    return out.reshape(time, -1) @ weights["o_proj.weight"]


def mlp(weights: Weights, x: np.ndarray) -> np.ndarray:
    gate, up = x @ weights["gate_proj.weight"], x @ weights["up_proj.weight"]
    return (gelu(gate) * up) @ weights["down_proj.weight"]


def router(weights: Weights, residual: np.ndarray, top_k: int, eps: float) -> list[dict[int, float]]:
    """For each token, the weight of each expert that it visits."""
    x = rms_norm(residual, None, eps) * weights["scale"] / math.sqrt(residual.shape[-1])
    visits = []
    for row in x @ weights["proj.weight"]:
        probs = softmax(row.tolist())
        best = sorted(range(len(probs)), key=lambda expert: -probs[expert])[:top_k]
        total = sum(probs[expert] for expert in best)
        visits.append({expert: probs[expert] / total * weights["per_expert_scale"][expert] for expert in best})
    return visits


def experts(weights: Weights, x: np.ndarray, visits: Sequence[dict[int, float]]) -> np.ndarray:
    """The weighted sum of the outputs of each token's experts."""
    out = np.zeros(x.shape)
    for t, token_visits in enumerate(visits):
        for expert, weight in token_visits.items():
            gate, up = np.split(weights["gate_up_proj"][expert] @ x[t], 2)
            out[t] += weight * (weights["down_proj"][expert] @ (gelu(gate) * up))
    return out


def decoder_layer(
    weights: Weights,
    config: Config,
    layer: int,
    x: np.ndarray,
    per_layer_input: np.ndarray | None,
    shared: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The layer's output, and the keys and values that it read: its own, unless `shared` has another layer's."""

    def norm(values: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(values, weights[f"{name}.weight"], config.rms_norm_eps)

    own = part(weights, "self_attn")
    normed = norm(x, "input_layernorm")
    kv = key_value(own, config, layer, normed) if shared is None else shared
    x = x + norm(attention(own, config, layer, normed, *kv), "post_attention_layernorm")

    update = mlp(part(weights, "mlp"), norm(x, "pre_feedforward_layernorm"))
    if config.enable_moe_block:
        visits = router(part(weights, "router"), x, config.top_k_experts, config.rms_norm_eps)
        mixture = experts(part(weights, "experts"), norm(x, "pre_feedforward_layernorm_2"), visits)
        update = norm(update, "post_feedforward_layernorm_1") + norm(mixture, "post_feedforward_layernorm_2")
    x = x + norm(update, "post_feedforward_layernorm")

    if config.hidden_size_per_layer_input:
        gated = gelu(x @ weights["per_layer_input_gate.weight"]) * per_layer_input
        x = x + norm(gated @ weights["per_layer_projection.weight"], "post_per_layer_input_norm")
    return x * weights["layer_scalar"], kv


# -- the decoder -------------------------------------------------------------------------------------------------------


def per_layer_inputs(weights: Weights, config: Config, tokens: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """[t, layers, p]."""
    width = config.hidden_size_per_layer_input
    out = np.empty((len(tokens), len(config.layer_types), width))
    for t, layer in np.ndindex(*out.shape[:2]):
        columns = slice(layer * width, (layer + 1) * width)
        own = weights["embed_tokens_per_layer.weight"][tokens[t], columns] * math.sqrt(width)
        projected = embedding[t] @ weights["per_layer_model_projection.weight"][:, columns]
        context = projected / math.sqrt(config.hidden_size)
        normed = rms_norm(context, weights["per_layer_projection_norm.weight"], config.rms_norm_eps)
        out[t, layer] = (normed + own) / math.sqrt(2)
    return out


def hidden_states(weights: Weights, config: Config, tokens: np.ndarray, kv_sources: Sequence[int]) -> np.ndarray:
    """The hidden states of a text after the final norm, [t, d].

    kv_sources: for each layer, the layer whose keys and values it reads.
    """
    x = embedding = weights["embed_tokens.weight"][tokens] * math.sqrt(config.hidden_size)
    has_ple = config.hidden_size_per_layer_input > 0
    ple = per_layer_inputs(part(weights, "per_layer_embeddings"), config, tokens, embedding) if has_ple else None
    kvs: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, source in enumerate(kv_sources):
        shared = None if source == layer else kvs[source]
        own_input = None if ple is None else ple[:, layer]
        x, kv = decoder_layer(part(weights, f"layers.{layer}"), config, layer, x, own_input, shared)
        kvs.append(kv)
    return rms_norm(x, weights["norm.weight"], config.rms_norm_eps)


def logits(weights: Weights, config: Config, hidden: np.ndarray) -> np.ndarray:
    scores, cap = hidden @ weights["embed_tokens.weight"].T, config.final_logit_softcapping
    return scores if cap is None else np.array([[cap * math.tanh(v / cap) for v in row] for row in scores.tolist()])
