"""What a stage needs at least: the bytes that must come from memory, and the operations that the formulas ask for.

Counted from shapes alone, for any device.  Each weight in use is read once; each layer reads the K/V that its queries see, and
writes those of new tokens; a product of [m, k] with [k, n] is 2mkn operations.  Activations, norms and the softmax are left
out: time spent beyond this is what an implementation adds.  For many queries at once this is no lower bound: scores that the
mask hides are counted, because `functional.attention` computes them.
"""

import math
from typing import Any, NamedTuple

from flax import nnx

from decoding.bench.machine import Machine
from drafter import Drafter
from gemma4 import Config, Gemma4
from gemma4.checkpoints.params import named_params
from gemma4.sharding import AXIS, specs


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


class Storage(NamedTuple):
    """How models lie in memory, if not in their own dtype on one device.

    weight_bits: of an element of a matrix, with its part of any scales: 4.5 for 4 bits, and 32 more for every 64 elements.
    cache_bits:  of a number in the cache.
    devices:     over which `gemma4/sharding.py` splits the models; work and sizes are then those of one device.
    """

    weight_bits: float | None = None
    cache_bits: float | None = None
    devices: int = 1


class Weight(NamedTuple):
    """The part of a parameter that one device holds.  row: elements of one row, which a lookup reads; itemsize: bytes."""

    size: float
    ndim: int
    row: int
    itemsize: float

    @property
    def bytes(self) -> float:
        return self.size * self.itemsize


def stored(model: nnx.Module, storage: Storage = Storage()) -> dict[str, Weight]:
    """The parameters of a target or a drafter as they are stored; shapes suffice."""
    params = named_params(model)
    split = specs(params, storage.devices) if storage.devices > 1 else {}
    found = {}
    for name, leaf in params.items():
        parts = storage.devices if AXIS in split.get(name, ()) else 1
        bits = storage.weight_bits if leaf.ndim > 1 else None
        itemsize = leaf.dtype.itemsize if bits is None else bits / 8
        found[name] = Weight(math.prod(leaf.shape) / parts, leaf.ndim, leaf.shape[-1], itemsize)
    return found


def forward_work(target: Gemma4, batch: int, tokens: int, context: int, storage: Storage = Storage()) -> Work:
    """One forward over `tokens` tokens a row, which follow `context` others, with logits for all of them."""
    return _forward(target, batch, tokens, context, storage, late_tokens=tokens, scored=tokens)


def prefill_work(target: Gemma4, batch: int, tokens: int, storage: Storage = Storage()) -> Work:
    """A whole prompt at once.  All that follows the last K/V runs for the last token alone, and only that token has logits."""
    return _forward(target, batch, tokens, 0, storage, late_tokens=1, scored=1)


def _forward(
    target: Gemma4, batch: int, tokens: int, context: int, storage: Storage, *, late_tokens: int, scored: int
) -> Work:
    """late_tokens: for how many tokens the last owner of K/V (except for its K/V) and all layers after it run."""
    config, params = target.config, stored(target, storage)
    kv_itemsize = _cache_itemsize(target, storage)
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
        work += _attention(config, layer, batch, queries, context + tokens, kv_itemsize, written, storage.devices)
    return work


def draft_work(
    target: Gemma4,
    draft_model: Drafter,
    batch: int,
    context: int,
    storage: Storage = Storage(),
    target_storage: Storage | None = None,
) -> Work:
    """One draft step: the drafter's layers over the target's K/V, and its head.

    storage: of the drafter; the target's, whose embeddings and cache it reads, is the same unless given.
    """
    target_storage = storage if target_storage is None else target_storage
    config, params = draft_model.config, stored(draft_model, storage)
    table, kv_itemsize = params["embed_tokens.weight"], _cache_itemsize(target, target_storage)
    work = _looked_up(stored(target, target_storage)["embed_tokens.weight"], batch)
    for name, weight in params.items():
        work += _weight(name, weight, batch, config.text)
    if config.use_ordered_embeddings:  # the centroids are among the weights
        candidates = config.text.vocab_size // config.num_centroids * config.centroid_intermediate_top_k
        work += _looked_up(table, batch * candidates) + Work(0, 2 * batch * candidates * table.row)
        work += Work(batch * candidates * 4, 0)  # their token ids
    else:
        work += _product(table, batch)
    for layer in range(config.text.num_hidden_layers):
        work += _attention(config.text, layer, batch, 1, context, kv_itemsize, 0, storage.devices)
    return work


def experts_touched(config: Config, tokens: int | float) -> float:
    """How many different experts of a layer `tokens` tokens visit together, if the router chooses at random.

    One token of 26B-A4B visits 8 of 128 experts, five visit 35.3 and forty 118.3.
    """
    return config.num_experts * (1 - (1 - config.top_k_experts / config.num_experts) ** tokens)


def _weight(name: str, weight: Weight, tokens: int | float, config: Config) -> Work:
    """What one parameter costs `tokens` tokens.  Tables cost nothing here: a token reads one of their rows (`_looked_up`)."""
    if name.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight", "token_ordering")):
        return Work(0, 0)
    if weight.ndim == 3:  # of all experts; each token visits some of them
        size = weight.size / config.num_experts
        read = experts_touched(config, tokens) * size * weight.itemsize
        return Work(read, 2 * size * tokens * config.top_k_experts)
    if weight.ndim == 2:
        return _product(weight, tokens)
    return Work(weight.bytes, 0)


def _product(weight: Weight, tokens: int | float) -> Work:
    return Work(weight.bytes, 2 * weight.size * tokens)


def _looked_up(table: Weight, tokens: int) -> Work:
    return Work(tokens * table.row * table.itemsize, 0)


def _cache_itemsize(target: Gemma4, storage: Storage) -> float:
    return float(target.embed_tokens.weight.dtype.itemsize) if storage.cache_bits is None else storage.cache_bits / 8


def kv_parts(config: Config, layer: int, devices: int) -> int:
    """Over how many devices a layer's K/V are split: all, or none where `devices` does not divide the heads."""
    return devices if config.kv_heads(layer) % devices == 0 else 1


def _attention(
    config: Config, layer: int, batch: int, queries: int, keys: int, itemsize: float, written: int, devices: int
) -> Work:
    """Scores and weighted sums over the `keys` newest positions; in a sliding layer a query sees one window of them."""
    seen = min(keys, config.sliding_window + queries - 1) if config.is_sliding(layer) else keys
    head_dim = config.layer_head_dim(layer)
    bytes_per_token = 2 * config.kv_heads(layer) // kv_parts(config, layer, devices) * head_dim * itemsize
    per_query = min(keys, config.sliding_window) if config.is_sliding(layer) else keys
    heads = config.num_attention_heads / (devices if config.num_attention_heads % devices == 0 else 1)
    flops = 4 * batch * queries * heads * head_dim * per_query
    return Work(batch * (seen + written) * bytes_per_token, flops)
