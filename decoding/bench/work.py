"""What a stage cannot do without: the bytes that must come from memory, and the multiplications that the formulas ask for.

Counted from shapes alone, for any device: every weight that is used is read once, every K/V row that a query sees is read
by the layer that attends to it, new rows are written; a product of [m, k] with [k, n] is 2mkn operations.  Activations, norms
and soft-max are left out: time spent beyond this is what an implementation adds.  For many queries at once it is no bound
from below: scores that the mask then hides are counted, as `functional.attend` computes them.
"""

from typing import Any, NamedTuple

from decoding.bench.machine import Machine
from drafter import Drafter
from gemma4 import Config, Gemma4
from gemma4.checkpoints.params import named_params
from gemma4.storage import Leaf


class Work(NamedTuple):
    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def against_machine(seconds: float, work: Work, machine: Machine) -> dict[str, Any]:
    """How a time compares with what the machine could do.

    A time that is a difference may come out as zero or less where the machine is noisy: no share then.
    """
    share = lambda work, rate: work / seconds / rate if seconds > 0 else None
    return {
        "seconds": seconds,
        **work._asdict(),
        "share_of_bandwidth": share(work.bytes, machine.bytes_per_second),
        "share_of_flops": share(work.flops, machine.flops_per_second),
    }


def forward_work(target: Gemma4, batch: int, tokens: int, context: int) -> Work:
    """One forward over `tokens` a row that stand after `context` others, all with logits."""
    return _forward(target, batch, tokens, context, late_tokens=tokens, scored=tokens)


def prefill_work(target: Gemma4, batch: int, tokens: int) -> Work:
    """All of a prompt at once: what follows the last keys and values runs for its last token only, which alone gets logits."""
    return _forward(target, batch, tokens, 0, late_tokens=1, scored=1)


def _forward(target: Gemma4, batch: int, tokens: int, context: int, *, late_tokens: int, scored: int) -> Work:
    """late_tokens: of how many the last owner of K/V, but for its keys and values, and all layers behind it run."""
    config, params = target.config, named_params(target)
    table, depth, late = params["embed_tokens.weight"], config.num_hidden_layers, config.last_kv_owner
    work = _looked_up(table, batch * tokens) + _product(table, batch * scored)
    if config.hidden_size_per_layer_input:
        work += _looked_up(params["per_layer_inputs.embed_tokens_per_layer.weight"], batch * tokens)
    for name, weight in params.items():
        rows = tokens
        if name.startswith("layers."):
            layer, writes = int(name.split(".")[1]), ".k_" in name or ".v_" in name
            rows = tokens if layer < late or writes else late_tokens
        elif name.startswith("per_layer_inputs."):  # a layer's share of its columns
            rows = (tokens * late + late_tokens * (depth - late)) / depth
        work += _weight(name, weight, batch * rows, config)
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


def _weight(name: str, weight: Leaf, rows: int | float, config: Config) -> Work:
    """What one parameter costs `rows` tokens; tables cost nothing here, for a token reads one row of them."""
    if name.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight", "token_ordering")):
        return Work(0, 0)
    if weight.ndim == 3:  # of experts, of which each token visits some
        share, experts = config.top_k_experts / config.num_experts, config.num_experts
        read = experts * (1 - (1 - share) ** rows)  # different ones, if the choices fall by chance
        size = weight.size / experts
        return Work(read * size * weight.dtype.itemsize, 2 * size * rows * config.top_k_experts)
    if weight.ndim == 2:
        return _product(weight, rows)
    return Work(weight.size * weight.dtype.itemsize, 0)


def _product(weight: Leaf, rows: int | float) -> Work:
    return Work(weight.size * weight.dtype.itemsize, 2 * weight.size * rows)


def _looked_up(table: Leaf, rows: int) -> Work:
    return Work(rows * table.shape[1] * table.dtype.itemsize, 0)


def _attention(config: Config, layer: int, batch: int, queries: int, keys: int, itemsize: int, written: int) -> Work:
    """Scores and sums over the `keys` newest positions; a sliding layer's queries see a window's worth each."""
    seen = min(keys, config.sliding_window + queries - 1) if config.is_sliding(layer) else keys
    head_dim, row = config.layer_head_dim(layer), 2 * config.kv_heads(layer) * config.layer_head_dim(layer) * itemsize
    per_query = min(keys, config.sliding_window) if config.is_sliding(layer) else keys
    flops = 4 * batch * queries * config.num_attention_heads * head_dim * per_query
    return Work(batch * (seen + written) * row, flops)
