"""An engine for Gemma 4 in NumPy, with four mistakes.  Do not look for them: `10_debug_an_engine` finds them.

It runs the layout 12B (sliding and full layers, no experts, no per-layer embeddings), and offers one pass without a cache and
acceptance.  Shapes: b batch row, t token, s key, n query head, k KV head, h head dim, d width, f MLP width, v vocabulary.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from decoding.oracle.engine import Decision, Engine

SLIDING = "sliding_attention"


def load(target_dir, drafter_dir, convention):
    """The adapter's entry: `gemma4-mtp oracle check golden --adapter sick_engine:load`."""
    return SickEngine(target_dir)


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class SickEngine(Engine):
    def __init__(self, target_dir):
        self.config = json.loads((Path(target_dir) / "config.json").read_text())
        self.weights = load_file(Path(target_dir) / "model.safetensors")

    # -- one pass without a cache ------------------------------------------------------------------------------------------

    def forward(self, tokens):
        """Every named tensor of one pass over tokens [b, t]."""
        taps = {"embedding": self.weight("embed_tokens")[tokens] * self.config["hidden_size"] ** 0.5}
        x = taps["embedding"]
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(layer, x, lambda name, value, at=layer: taps.setdefault(f"layers.{at}.{name}", value))
        taps["hidden"] = self.norm("norm", x)
        taps["logits"] = self.logits(taps["hidden"])
        return {name: np.float32(value) for name, value in taps.items()}

    def layer(self, layer, x, tap):
        at = f"layers.{layer}"
        attended = self.attention(layer, tap("input_layernorm", self.norm(f"{at}.input_layernorm", x)), tap)
        attended = tap("self_attn", attended @ self.weight(f"{at}.self_attn.o_proj").T)
        x = tap("after_attention", x + self.norm(f"{at}.post_attention_layernorm", attended))
        normed = tap("pre_feedforward_layernorm", self.norm(f"{at}.pre_feedforward_layernorm", x))
        x = tap(
            "after_mlp", x + self.norm(f"{at}.post_feedforward_layernorm", tap("mlp", self.mlp(f"{at}.mlp", normed)))
        )
        return tap("output", x * self.weights[f"model.{at}.layer_scalar"])

    def attention(self, layer, x, tap):
        """[b, t, n * h]: the heads' outputs, side by side."""
        raw_key = self.heads(layer, "k_proj", x)
        query, key = self.query_and_key(layer, self.heads(layer, "q_proj", x), raw_key)
        value = tap("value", self.norm(None, self.raw_value(layer, x, raw_key, key)))
        tap("query", query), tap("key", key)
        group = query.shape[2] // key.shape[2]  # query heads that share one KV head
        key, value = np.repeat(key, group, axis=2), np.repeat(value, group, axis=2)
        scores = np.einsum("btnh,bsnh->bnts", query, key)  # not divided by the root of h: queries and keys are normed
        probs = softmax(np.where(self.mask(layer, x.shape[1]), scores, -np.inf))
        return tap("attention", np.einsum("bnts,bsnh->btnh", probs, value)).reshape(*x.shape[:2], -1)

    def query_and_key(self, layer, raw_query, raw_key):
        at = f"layers.{layer}.self_attn"
        return (
            self.rotate(layer, self.norm(f"{at}.q_norm", raw_query)),
            self.rotate(layer, self.norm(f"{at}.k_norm", raw_key)),
        )

    def raw_value(self, layer, x, raw_key, key):
        """The values before their norm.  Full layers have no V projection: keys and values come from one projection."""
        return self.heads(layer, "v_proj", x) if self.is_sliding(layer) else key

    def mask(self, layer, time):
        """[t, s]: which keys each query sees."""
        query, key = np.arange(time)[:, None], np.arange(time)
        causal = key <= query
        return causal & (query - key <= self.config["sliding_window"]) if self.is_sliding(layer) else causal

    def rotate(self, layer, x):
        """RoPE: each pair (x[i], x[i + h/2]) turns by its angle.  In full layers only a share of the pairs turns."""
        settings = self.config["rope_parameters"][self.config["layer_types"][layer]]
        pairs = x.shape[-1] // 2
        frequencies = settings["rope_theta"] ** (-2 * np.arange(pairs) / x.shape[-1])
        frequencies[int(settings.get("partial_rotary_factor", 1) * pairs) :] = 0
        angle = (np.arange(x.shape[1])[:, None] * frequencies)[:, None]
        first, second = x[..., :pairs], x[..., pairs:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def mlp(self, at, x):
        gate, up = x @ self.weight(f"{at}.gate_proj").T, x @ self.weight(f"{at}.up_proj").T
        return (gelu(gate) * up) @ self.weight(f"{at}.down_proj").T

    def logits(self, hidden):
        return hidden @ self.weight("embed_tokens").T

    def norm(self, name, x):
        """RMSNorm; without a name, without a weight."""
        normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return normed if name is None else normed * self.weight(name)

    def heads(self, layer, name, x):
        """[b, t, heads, h]."""
        head_dim = self.config["head_dim" if self.is_sliding(layer) else "global_head_dim"]
        return (x @ self.weight(f"layers.{layer}.self_attn.{name}").T).reshape(*x.shape[:2], -1, head_dim)

    def is_sliding(self, layer):
        return self.config["layer_types"][layer] == SLIDING

    def weight(self, name):
        return self.weights[f"model.{name}.weight"]

    # -- sampling and acceptance -------------------------------------------------------------------------------------------

    def token_probs(self, logits, sampling):
        """[n, v]: the distribution after top-k, temperature and top-p."""
        if sampling.is_greedy:
            return np.eye(logits.shape[-1])[logits.argmax(axis=-1)]
        order = np.argsort(-logits, axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1)
        probs = softmax(np.where(rank < (sampling.top_k or logits.shape[-1]), logits, -np.inf) / sampling.temperature)
        descending = np.take_along_axis(probs, order, axis=-1)
        mass_before = np.take_along_axis(np.cumsum(descending, axis=-1) - descending, rank, axis=-1)
        kept = np.where(mass_before < sampling.top_p, probs, 0)
        return kept / kept.sum(axis=-1, keepdims=True)

    def draft_probs(self, logits, sampling):
        """Drafts are drawn from the distribution that acceptance receives."""
        probs = self.token_probs(logits, sampling)
        return probs, probs

    def accept(self, target_probs, drafts, draft_probs, uniforms):
        rows, gamma = np.arange(len(drafts)), drafts.shape[1]
        p = np.take_along_axis(target_probs[:, :gamma], drafts[..., None], axis=-1)[..., 0]
        q = np.take_along_axis(draft_probs, drafts[..., None], axis=-1)[..., 0]
        num_accepted = np.cumprod(uniforms[:, :gamma] * q < p, axis=1).sum(axis=1)
        drafted = np.pad(draft_probs, ((0, 0), (0, 1), (0, 0)))  # nothing is drafted after the last draft
        weights = self.next_weights(target_probs[rows, num_accepted], drafted[rows, num_accepted])
        running = np.cumsum(weights, axis=-1)
        chosen = running > uniforms[:, gamma:] * running[:, -1:]
        return Decision(num_accepted.astype(np.int32), chosen.argmax(axis=-1).astype(np.int32))

    def next_weights(self, p, q):
        """[b, v]: the distribution of the target's own token, not normalised; p and q where the first rejection is."""
        return p

    def accept_greedy(self, logits, drafts):
        best = logits.argmax(axis=-1)
        num_accepted = np.cumprod(drafts == best[:, :-1], axis=1).sum(axis=1)
        return Decision(num_accepted.astype(np.int32), best[np.arange(len(drafts)), num_accepted].astype(np.int32))
