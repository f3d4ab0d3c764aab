"""What tiny pairs do when they are split over virtual CPU devices, as JSON.  `tests/unit/test_sharding.py` runs this file by
itself, for the number of devices must be set before JAX begins.

    python -m tests.virtual_devices '[["31B", 4]]'       # layouts and numbers of devices
"""

import json
import math
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
import gemma4
from decoding.fast.jit import laid_out
from decoding.oracle.tiny import restless
from decoding.stages.prefill import _read_chunk
from gemma4.checkpoints.params import named_params
from gemma4.model import _forward
from gemma4.sharding import footprint
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target, random_tokens

PROMPTS, NEW_TOKENS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8, 8, 30, 2, 4]], 24  # the second is longer than the window
TOKENS = random_tokens(2, 11)


def main() -> None:
    json.dump(
        {f"{layout}/{devices}": facts(layout, devices) for layout, devices in json.loads(sys.argv[1])}, sys.stdout
    )


def facts(layout: str, devices: int) -> dict:
    whole = restless(random_target(TINY[layout])), random_drafter(TINY_DRAFTERS[layout])
    mesh = jax.make_mesh((devices,), ("model",))
    split, kept_by_orbax = through_files(whole, mesh)
    target, draft = split
    forward = _forward.lower(target, jnp.asarray(TOKENS), None).compile()
    logits, expected = forward(target, jnp.asarray(TOKENS), None).logits, gemma4.forward(whole[0], TOKENS).logits
    cache = gemma4.init_cache(target.config, 1, 32, chunk=1, mesh=mesh)
    one_token = jnp.zeros((1, 1), jnp.int32), jnp.array([1]), jnp.zeros((1, target.config.hidden_size))
    of_one_token = _read_chunk.lower(target, cache, *one_token).compile()
    heads = jax.tree.leaves([(model.cpu_head, getattr(model, "masked_embedding", None)) for model in laid_out(*split)])
    return {
        "loaded": [same(a, b) for a, b in zip(split, whole, strict=True)],
        "kept_by_orbax": same(kept_by_orbax, target) and places(kept_by_orbax) == places(target),
        "parts": [parts(model) for model in split],
        "footprints": [footprint(named_params(model), devices).each for model in split],
        "held": [held(model) for model in split],
        "distance": float(np.abs(logits - np.asarray(expected)).max() / np.abs(expected).max()),
        "exchanges": len(exchanged(forward)),
        "most_exchanged": max(exchanged(of_one_token)),
        "smallest_part": min(leaf.size // devices for leaf in jax.tree.leaves(target) if number_of_parts(leaf) > 1),
        "heads": [number_of_parts(head) for head in heads if head.ndim > 1],
        "cache": parts_of_cache(cache),
        "threads": refused(lambda: decoding.generate(*split, PROMPTS, on_device=True, threads=2)),
        **write_texts(whole, split),
    }


def through_files(whole, mesh):
    """The pair as it is loaded from Hugging Face files onto the mesh; and its target by way of Orbax.

    From the host straight to its place: a copy from one device to others is refused.
    """
    with tempfile.TemporaryDirectory() as directory, jax.transfer_guard_device_to_device("disallow_explicit"):
        files = Path(directory)
        gemma4.export_hf(whole[0], files / "target")
        drafter.export_hf(whole[1], files / "drafter")
        target, draft, _ = decoding.load_pair(files / "target", files / "drafter", mesh=mesh)
        gemma4.save(target, files / "orbax")
        return (target, draft), gemma4.load(files / "orbax", mesh=mesh)


def write_texts(whole, split) -> dict:
    """The unsplit target's own text, and what the split pair writes; and into how many parts its caches began."""
    settings = {"max_new_tokens": NEW_TOKENS}
    prefill, begun = sys.modules["decoding.stages.prefill"], []

    def init_cache(*args, **kwargs):
        cache = gemma4.init_cache(*args, **kwargs)
        begun.extend(parts_of_cache(cache))
        return cache

    plain = decoding.generate_autoregressive(whole[0], PROMPTS, **settings)
    with mock.patch.object(prefill, "init_cache", init_cache):
        outs = [plain, decoding.generate(*split, PROMPTS, **settings)]
    if whole[0].config == TINY["31B"]:  # one layout is enough: it is compiled once more
        outs.append(decoding.generate(*split, PROMPTS, **settings, on_device=True))
    return {"texts": [[text.tolist() for text in out.tokens] for out in outs], "begun": begun}


def refused(call) -> str | None:
    try:
        call()
    except ValueError as error:
        return str(error)


def same(model, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True))


def places(model) -> list:
    return [leaf.sharding for leaf in jax.tree.leaves(model)]


def number_of_parts(array: jax.Array) -> int:
    return array.size // array.addressable_shards[0].data.size


def parts(model) -> dict[str, int]:
    """Of every parameter: into how many parts it is split."""
    return {name: number_of_parts(leaf) for name, leaf in named_params(model).items()}


def parts_of_cache(cache: gemma4.KVCache) -> list[int]:
    """Of each layer that owns K/V; its keys and values alike."""
    return [max(map(number_of_parts, kv)) for kv in cache.layers if kv]


def held(model) -> list[int]:
    """Bytes of the model on each of its devices."""
    sizes: dict[int, int] = {}
    for leaf in jax.tree.leaves(model):
        for shard in leaf.addressable_shards:
            sizes[shard.device.id] = sizes.get(shard.device.id, 0) + shard.data.nbytes
    return sorted(sizes.values())


def exchanged(program: jax.stages.Compiled) -> list[int]:
    """Of every array that devices add up, gather or send each other: its size on one of them afterwards."""
    operation = r"= (.*) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    shapes = re.findall(r"\w\[([\d,]+)\]", " ".join(re.findall(operation, program.as_text())))
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


if __name__ == "__main__":
    main()
