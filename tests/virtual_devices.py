"""Facts about tiny pairs that are split over virtual CPU devices, as JSON.  `tests/gemma4/test_sharding.py` runs this file in a
process of its own, because the number of devices must be set before JAX starts.

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
import decoding.stages.prefill
import drafter
import gemma4
from decoding import fast
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
    split, from_orbax = through_files(whole, mesh)
    target, twin = split[0], fast.for_backend(split[0])
    cache = gemma4.init_cache(target.config, 1, 32, chunk=1, mesh=mesh)
    one_token = jnp.zeros((1, 1), jnp.int32), jnp.array([1]), jnp.zeros((1, target.config.hidden_size))
    forwards = [_forward.lower(model, jnp.asarray(TOKENS), None).compile() for model in (target, twin)]
    reads_one_token = [_read_chunk.lower(model, cache, *one_token).compile() for model in (target, twin)]
    expected = gemma4.forward(whole[0], TOKENS).logits
    logits = [
        forward(model, jnp.asarray(TOKENS), None).logits
        for forward, model in zip(forwards, (target, twin), strict=True)
    ]
    return {
        "loaded": [same(a, b) for a, b in zip(split, whole, strict=True)],
        "orbax_keeps": same(from_orbax, target) and places(from_orbax) == places(target),
        "parts": [parts(model) for model in split],
        "footprints": [footprint(named_params(model), devices).each for model in split],
        "held": [held(model) for model in split],
        "distances": [float(np.abs(ours - np.asarray(expected)).max() / np.abs(expected).max()) for ours in logits],
        "exchanges": [len(exchanged(program)) for program in forwards],
        "most_exchanged": [max(exchanged(program)) for program in reads_one_token],
        "smallest_part": min(leaf.size // devices for leaf in jax.tree.leaves(target) if number_of_parts(leaf) > 1),
        "copies": [copies(fast.for_backend(model), model) for model in split],
        "cache": parts_of_cache(cache),
        "threads": refused(lambda: decoding.generate(*split, PROMPTS, loop="on_device", threads=2)),
        **write_texts(whole, split),
    }


def through_files(whole, mesh):
    """The pair as loaded from Hugging Face files onto the mesh; and its target through Orbax.

    Each tensor goes from the host to its devices: a copy from one device to others is an error.
    """
    with tempfile.TemporaryDirectory() as directory, jax.transfer_guard_device_to_device("disallow_explicit"):
        files = Path(directory)
        gemma4.export_hf(whole[0], files / "target")
        drafter.export_hf(whole[1], files / "drafter")
        target, draft, _ = decoding.load_pair(files / "target", files / "drafter", mesh=mesh)
        gemma4.save(target, files / "orbax")
        return (target, draft), gemma4.load(files / "orbax", mesh=mesh)


def write_texts(whole, split) -> dict:
    """The text of the whole target, and those of the split pair; and into how many parts its caches are split at first."""
    settings, new_caches = {"max_new_tokens": NEW_TOKENS}, []

    def init_cache(*args, **kwargs):
        cache = gemma4.init_cache(*args, **kwargs)
        new_caches.extend(parts_of_cache(cache))
        return cache

    plain = decoding.generate_autoregressive(whole[0], PROMPTS, **settings)
    with mock.patch.object(decoding.stages.prefill, "init_cache", init_cache):
        outs = [plain, decoding.generate(*split, PROMPTS, **settings)]
    if whole[0].config == TINY["31B"]:  # one layout is enough, because each loop is compiled
        outs += [decoding.generate(*split, PROMPTS, **settings, loop=loop) for loop in ("on_device", "plain")]
    return {"texts": [[text.tolist() for text in out.tokens] for out in outs], "new_caches": new_caches}


def refused(call) -> str | None:
    try:
        call()
    except ValueError as error:
        return str(error)


def same(model, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True))


def places(model) -> list:
    return [leaf.sharding for leaf in jax.tree.leaves(model)]


def copies(twin, model) -> dict[str, int]:
    """The arrays that a twin holds beside the model's own: into how many parts each is split."""
    return {name: count for name, count in parts(twin).items() if name not in named_params(model)}


def number_of_parts(array: jax.Array) -> int:
    return array.size // array.addressable_shards[0].data.size


def parts(model) -> dict[str, int]:
    """For every parameter, into how many parts it is split."""
    return {name: number_of_parts(leaf) for name, leaf in named_params(model).items()}


def parts_of_cache(cache: gemma4.KVCache) -> list[int]:
    """For each layer that owns K/V; its keys and values alike."""
    return [max(map(number_of_parts, kv)) for kv in cache.layers if kv]


def held(model) -> list[int]:
    """Bytes of the model on each of its devices."""
    sizes: dict[int, int] = {}
    for leaf in jax.tree.leaves(model):
        for shard in leaf.addressable_shards:
            sizes[shard.device.id] = sizes.get(shard.device.id, 0) + shard.data.nbytes
    return sorted(sizes.values())


def exchanged(program: jax.stages.Compiled) -> list[int]:
    """For every array that devices add up, gather or send each other, its size on one of them afterwards."""
    operation = r"= (.*) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    shapes = re.findall(r"\w\[([\d,]+)\]", " ".join(re.findall(operation, program.as_text())))
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


if __name__ == "__main__":
    main()
