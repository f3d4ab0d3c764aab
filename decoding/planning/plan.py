"""Memory and speed of a pair on a device, predicted from shapes: `bench/work.py` and `bench/cost.py` applied on paper.

A stage takes as long as its bytes or its operations, whichever is longer, then the start of each of its kernels, and for
several devices the sums over them.  Nothing here is fitted to a measurement of speed.  The kernels are those of our own
programs, counted as XLA compiles them for an H100 (`tests/gpu` compares); other engines have fewer.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from decoding.bench import cost
from decoding.bench.work import Storage, Work, draft_work, experts_touched, forward_work, kv_parts, stored
from decoding.planning.architecture import Models
from decoding.planning.devices import Device
from decoding.stages.prefill import MAX_CHUNK, ring_chunk
from drafter import Drafter
from gemma4 import Config, Gemma4, init_cache
from gemma4.fast.long_attention import LARGE_BLOCK

# Kernels of a decoder layer for one token and for several, what a layer of experts adds, each visit of a token to an expert
# (one after the other, `gemma4/fast/experts.py`), a draft step, and acceptance.
ONE_TOKEN, SEVERAL_TOKENS, ROUTER, VISIT, DRAFT_STEP, ACCEPT = 33, 25, 12, 6, 103, 30
SUMS_PER_LAYER = 2  # over devices: after attention, and after the MLP


class Setup(NamedTuple):
    device: Device
    count: int = 1
    context: int = 8192  # tokens before the round, and slots of the cache
    batch: int = 1
    draft_lengths: Sequence[int] = tuple(range(1, 9))
    acceptance: Sequence[float] = (0.7,)  # `cost.reached`
    is_sampled: bool = False
    target: Storage = Storage()
    drafter: Storage = Storage()
    counts_kernels: bool = True


class Stage(NamedTuple):
    """One stage on each of the devices."""

    name: str
    draft_length: int
    work: Work
    kernels: float
    sums: float  # over devices
    summed_bytes: float
    seconds: float
    bound_by: str


def plan(models: Models, setup: Setup) -> dict[str, Any]:
    """Errors: ValueError for a pair without a drafter."""
    target, draft_model = models.target, models.draft_model
    if draft_model is None:
        raise ValueError(f"{models.name}: has no drafter; name its directory with --drafter")
    setup = setup._replace(
        target=setup.target._replace(devices=setup.count), drafter=setup.drafter._replace(devices=setup.count)
    )
    step = forward_stage("autoregressive step", target, setup, tokens=1)
    stages, loops = [step], []
    for gamma in setup.draft_lengths:
        draft = draft_stage(target, draft_model, setup, gamma)
        verify = forward_stage("verify", target, setup, tokens=gamma + 1)
        accept = accept_stage(target.config, setup, gamma)
        stages += [draft, verify, accept]
        loops.append(loop(setup, gamma, cost.Times(step.seconds, draft.seconds, verify.seconds, accept.seconds)))
    return {
        "name": models.name,
        "dtype": dtype_of(target),
        "setup": {
            **setup.device._asdict(),
            "count": setup.count,
            "context": setup.context,
            "batch": setup.batch,
            "acceptance": list(setup.acceptance),
            "sampled": setup.is_sampled,
            "target": setup.target._asdict(),
            "drafter": setup.drafter._asdict(),
        },
        "memory": memory(target, draft_model, setup),
        "stages": [stage._asdict() | stage.work._asdict() for stage in stages],
        "experts": experts(target.config, setup),
        "autoregressive_tokens_per_second": setup.batch / step.seconds,
        "loops": loops,
        "best_draft_length": max(loops, key=lambda entry: entry["tokens_per_second"])["draft_length"],
    }


def loop(setup: Setup, gamma: int, times: cost.Times) -> dict[str, Any]:
    tokens = cost.tokens_per_round(setup.acceptance, gamma)
    speed_up = cost.speed_up(tokens, times)
    return {
        "draft_length": gamma,
        "tokens_per_round": tokens,
        "seconds_per_round": times.draft + times.verify + times.accept,
        "tokens_per_second": setup.batch * speed_up / times.autoregressive,
        "speed_up": speed_up,
        "break_even": cost.break_even(gamma, times),
    }


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(target: Gemma4, draft_model: Drafter, setup: Setup) -> dict[str, Any]:
    """Bytes of one device."""
    found = {
        "target": sum(weight.bytes for weight in stored(target, setup.target).values()),
        "drafter": sum(weight.bytes for weight in stored(draft_model, setup.drafter).values()),
        "cache": cache_bytes(target, setup),
        "round_workspace": round_workspace(target, setup),
        "prefill_workspace": prefill_workspace(target.config, setup),
    }
    if setup.device.backend == "cpu" and draft_model.config.use_ordered_embeddings:
        found["drafter"] += stored(draft_model, setup.drafter)["embed_tokens.weight"].bytes  # `drafter/fast.py`
    resident = found["target"] + found["drafter"] + found["cache"]
    total = resident + max(found["round_workspace"], found["prefill_workspace"])
    return {**found, "total": total, "capacity": setup.device.memory, "fits": total <= setup.device.memory}


def cache_bytes(target: Gemma4, setup: Setup) -> float:
    """As a prefill in long chunks makes it.  `generate` lets a cache grow by doubling: it may be up to twice as large."""
    config, dtype = target.config, target.embed_tokens.weight.dtype
    cache = jax.eval_shape(
        lambda: init_cache(config, setup.batch, setup.context, chunk=ring_chunk(MAX_CHUNK), dtype=dtype)
    )
    itemsize = dtype.itemsize if setup.target.cache_bits is None else setup.target.cache_bits / 8
    return itemsize * sum(
        (math.prod(kv.key.shape) + math.prod(kv.value.shape)) / kv_parts(config, layer, setup.count)
        for layer, kv in enumerate(cache.layers)
        if kv
    )


def round_workspace(target: Gemma4, setup: Setup) -> float:
    """What lives between the kernels of a round: logits in float32, scores of a layer, and a copy of its values."""
    config, itemsize = target.config, target.embed_tokens.weight.dtype.itemsize
    gamma = max(setup.draft_lengths)
    rows = 2 * (gamma + 1) + (
        2 * (3 * gamma + 1) if setup.is_sampled else 0
    )  # sampled: both distributions, and drafts'
    logits = 4 * rows * config.vocab_size / setup.count
    keys = min(setup.context, LARGE_BLOCK)
    scores = 2 * 4 * (gamma + 1) * split_heads(config, setup) * keys
    values = [
        itemsize * config.kv_heads(layer) / kv_parts(config, layer, setup.count) * config.layer_head_dim(layer) * slots
        for layer in config.donors.values()
        for slots in [min(keys, config.sliding_window + MAX_CHUNK) if config.is_sliding(layer) else keys]
    ]
    # Layers that share K/V share the copy, which then lives until the last of them.
    copied = sum(values) if config.num_kv_shared_layers else max(values)
    return setup.batch * (logits + scores + copied)


def prefill_workspace(config: Config, setup: Setup) -> float:
    """The scores of a chunk of the prompt, float32."""
    keys = min(setup.context, LARGE_BLOCK)
    return 4.0 * setup.batch * split_heads(config, setup) * min(MAX_CHUNK, setup.context) * keys


def split_heads(config: Config, setup: Setup) -> float:
    heads = config.num_attention_heads
    return heads / setup.count if heads % setup.count == 0 else heads


# -- time --------------------------------------------------------------------------------------------------------------


def forward_stage(name: str, target: Gemma4, setup: Setup, tokens: int) -> Stage:
    config = target.config
    work = forward_work(target, setup.batch, tokens, setup.context, setup.target)
    layer = ONE_TOKEN if setup.batch * tokens == 1 else SEVERAL_TOKENS
    if config.enable_moe_block:
        visits = setup.batch * tokens * config.top_k_experts
        is_sparse = setup.device.backend == "cpu" or visits < config.num_experts
        layer += ROUTER + (VISIT * visits if is_sparse else 0)
    return timed(name, tokens - 1, work, layer * config.num_hidden_layers, config, setup, tokens)


def draft_stage(target: Gemma4, draft_model: Drafter, setup: Setup, gamma: int) -> Stage:
    """gamma steps, one after the other."""
    step = draft_work(target, draft_model, setup.batch, setup.context, setup.drafter, setup.target)
    work = Work(gamma * step.bytes, gamma * step.flops)
    return timed("draft", gamma, work, gamma * DRAFT_STEP, draft_model.config.text, setup, gamma)


def accept_stage(config: Config, setup: Setup, gamma: int) -> Stage:
    """Reads the logits, and where text is sampled writes and reads both distributions."""
    rows = (gamma + 1) + (2 * (2 * gamma + 1) if setup.is_sampled else 0)
    work = Work(4.0 * setup.batch * rows * config.vocab_size / setup.count, 0)
    return timed("accept", gamma, work, ACCEPT, config, setup, 0)


def timed(name: str, gamma: int, work: Work, kernels: int | float, config: Config, setup: Setup, tokens: int) -> Stage:
    """tokens: of each row, whose activations are summed over the devices in each layer."""
    device, dtype_bytes = setup.device, 2
    kernels = kernels if setup.counts_kernels else 0
    sums = SUMS_PER_LAYER * config.num_hidden_layers * (setup.count > 1) * (tokens > 0)
    if name == "draft":  # steps follow one another, each with one token a row
        sums, tokens = sums * gamma, 1
    summed = sums * setup.batch * tokens * config.hidden_size * dtype_bytes * 2 * (1 - 1 / setup.count)
    parts = {
        "bytes": work.bytes / device.bandwidth,
        "operations": work.flops / device.flops,
        "launches": kernels * device.launch,
        "sums": sums * device.link_latency + (summed / device.link_bandwidth if summed else 0),
    }
    seconds = max(parts["bytes"], parts["operations"]) + parts["launches"] + parts["sums"]
    return Stage(name, gamma, work, kernels, sums, summed, seconds, max(parts, key=lambda part: parts[part]))


def experts(config: Config, setup: Setup) -> list[dict[str, Any]] | None:
    """How many experts of a layer the step (draft length 0) and each verify reads; None without a mixture."""
    if not config.enable_moe_block:
        return None
    return [
        {"draft_length": gamma, "tokens": tokens, "touched": experts_touched(config, tokens), "of": config.num_experts}
        for gamma in (0, *setup.draft_lengths)
        for tokens in [setup.batch * (gamma + 1)]
    ]


def dtype_of(target: Gemma4) -> str:
    return target.embed_tokens.weight.dtype.name
