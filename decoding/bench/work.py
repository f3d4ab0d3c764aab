"""What a stage needs at least: the bytes that must come from memory, and the operations that the formulas ask for.

Counted from shapes alone, for any device.  Each weight in use is read once; each layer reads the K/V that its queries see, and
writes those of new tokens; a product of [m, k] with [k, n] is 2mkn operations.  Activations, norms and the softmax are left
out: time spent beyond this is what an implementation adds.  For many queries at once this is no lower bound: scores that the
mask hides are counted, because `functional.attention` computes them.
"""

from typing import Any, NamedTuple

from decoding.bench.machine import Machine
from drafter import Drafter
from gemma4 import Config, Gemma4
from gemma4.checkpoints.params import Leaf, named_params


class Work(NamedTuple):
    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def against_machine(seconds: float, work: Work, machine: Machine) -> dict[str, Any]:
    """How a time compares with the machine's limits.

    A time that is a difference may be zero or less on a noisy machine; its shares are None.
    """

    def share(work: int | float, rate: float) -> float | None:
        return work / seconds / rate if seconds > 0 else None

    return {
        "seconds": seconds,
        **work._asdict(),
        "share_of_bandwidth": share(work.bytes, machine.bytes_per_second),
        "share_of_flops": share(work.flops, machine.flops_per_second),
    }


def least_seconds(work: Work, machine: Machine) -> float:
    """The time of a machine that reads memory while it computes: what takes longer of the two (the roofline model).

    Source: Williams, Waterman & Patterson 2009, "Roofline: an insightful visual performance model".
    """
    return max(work.bytes / machine.bytes_per_second, work.flops / machine.flops_per_second)


def forward_work(target: Gemma4, batch: int, tokens: int, context: int) -> Work:
    """One forward over `tokens` tokens a row, which follow `context` others, with logits for all of them."""
    return _forward(target, batch, tokens, context, late_tokens=tokens, scored=tokens)


def prefill_work(target: Gemma4, batch: int, tokens: int) -> Work:
    """A whole prompt at once.  All that follows the last K/V runs for the last token alone, and only that token has logits."""
    return _forward(target, batch, tokens, 0, late_tokens=1, scored=1)


def _forward(target: Gemma4, batch: int, tokens: int, context: int, *, late_tokens: int, scored: int) -> Work:
    """late_tokens: for how many tokens the last owner of K/V (except for its K/V) and all layers after it run."""
    config, params = target.config, named_params(target)
    table, depth, late = params["embed_tokens.weight"], config.num_hidden_layers, config.first_kv_shared_layer - 1
    work = _looked_up(table, batch * tokens) + _product(table, batch * scored)
    if config.hidden_size_per_layer_input:
        work += _looked_up(params["per_layer_embeddings.embed_tokens_per_layer.weight"], batch * tokens)
    for name, weight in params.items():
        count: int | float = tokens
        if name.startswith("layers."):
            layer, writes = int(name.split(".")[1]), ".k_" in name or ".v_" in name
            count = tokens if layer < late or writes else late_tokens
        elif name.startswith("per_layer_embeddings."):  # each layer uses its own columns
            count = (tokens * late + late_tokens * (depth - late)) / depth
        work += _weight(name, weight, batch * count, config)
    for layer in range(depth):
        queries, written = tokens if layer < late else late_tokens, tokens if layer <= late else 0
        work += _attention(config, layer, batch, queries, context + tokens, table.dtype.itemsize, written)
    return work


def draft_work(target: Gemma4, draft_model: Drafter, batch: int, context: int) -> Work:
    """One draft step: the drafter's layers over the target's K/V, and its head."""
    config, params = draft_model.config, named_params(draft_model)
    table = params["embed_tokens.weight"]
    work = _looked_up(named_params(target)["embed_tokens.weight"], batch)
    for name, weight in params.items():
        work += _weight(name, weight, batch, config.text)
    if config.use_ordered_embeddings:  # the centroids are among the weights
        candidates = config.text.vocab_size // config.num_centroids * config.centroid_intermediate_top_k
        work += _looked_up(table, batch * candidates) + Work(0, 2 * batch * candidates * table.shape[1])
        work += Work(batch * candidates * 4, 0)  # their token ids
    else:
        work += _product(table, batch)
    for layer in range(config.text.num_hidden_layers):
        work += _attention(config.text, layer, batch, 1, context, table.dtype.itemsize, written=0)
    return work


def _weight(name: str, weight: Leaf, tokens: int | float, config: Config) -> Work:
    """What one parameter costs `tokens` tokens.  Tables cost nothing here: a token reads one of their rows (`_looked_up`)."""
    if name.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight", "token_ordering")):
        return Work(0, 0)
    if weight.ndim == 3:  # of all experts; each token visits some of them
        share, experts = config.top_k_experts / config.num_experts, config.num_experts
        read = experts * (1 - (1 - share) ** tokens)  # distinct ones, if the router chooses at random
        size = weight.size / experts
        return Work(read * size * weight.dtype.itemsize, 2 * size * tokens * config.top_k_experts)
    if weight.ndim == 2:
        return _product(weight, tokens)
    return Work(weight.size * weight.dtype.itemsize, 0)


def _product(weight: Leaf, tokens: int | float) -> Work:
    return Work(weight.size * weight.dtype.itemsize, 2 * weight.size * tokens)


def _looked_up(table: Leaf, tokens: int) -> Work:
    return Work(tokens * table.shape[1] * table.dtype.itemsize, 0)


def _attention(config: Config, layer: int, batch: int, queries: int, keys: int, itemsize: int, written: int) -> Work:
    """Scores and weighted sums over the `keys` newest positions; in a sliding layer a query sees one window of them."""
    seen = min(keys, config.sliding_window + queries - 1) if config.is_sliding(layer) else keys
    head_dim = config.layer_head_dim(layer)
    bytes_per_token = 2 * config.kv_heads(layer) * head_dim * itemsize
    per_query = min(keys, config.sliding_window) if config.is_sliding(layer) else keys
    flops = 4 * batch * queries * config.num_attention_heads * head_dim * per_query
    return Work(batch * (seen + written) * bytes_per_token, flops)
