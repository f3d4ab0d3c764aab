"""The KV cache: one rule for full and sliding layers, and rollback for free.

The rule
    The token at absolute position p lives in slot p % capacity of its layer.

A full layer has a slot for every position, so there the rule is the identity.  A sliding layer has capacity
window + chunk, where chunk is the most tokens that one forward may write: a ring that forgets what no query can see.

Reading the rule backwards: with `last` the newest position written by the current forward, slot s holds position
last - ((last - s) mod capacity).  `slot_positions` computes that; `functional.attention_mask` does the rest.

Why rollback is `length = n`, with nothing copied or cleared
    A forward that starts at position a writes at most a .. a+chunk-1.  After rollback to n >= a the rejected tokens occupy
    the slots of positions n .. a+chunk-1.  The next forward starts at n: whatever it does not overwrite is read as a position
    of at most (a+chunk-1) - capacity.  In a full layer that is negative.  In a ring it is a - 1 - window at most, while
    the oldest key that a query at n or later sees is n - window + 1.  So no mask ever shows a rejected slot, and the slot
    of every visible position still holds that position.  `tests/gemma4/test_cache.py` fills all other slots with NaN.
    (A drafter of the transformers convention runs before that forward.  Its newest key is at n - 1, and it sees window + 1
    keys, from n - 1 - window on.  That is the position a - 1 - window only where n = a, where nothing of a forward was kept, as
    may happen in `decoding.prefill`, which therefore makes its rings one slot larger than a forward needs.)

Padding is a draft that is always rejected, and prefill is a verify that accepts everything: both need no code here.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.core import Tracer
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma4.config import Config
from gemma4.sharding import kv_sharding


class LayerKV(NamedTuple):
    """K/V of one layer: keys (after norm and RoPE) and values (after norm), [batch, kv_heads, capacity, head_dim]."""

    key: Float[Array, "b k s h"]
    value: Float[Array, "b k s h"]

    @property
    def capacity(self) -> int:
        return self.key.shape[2]

    @classmethod
    def of(cls, key: Float[Array, "b t k h"], value: Float[Array, "b t k h"]) -> "LayerKV":
        """From [b, t, k, h] to [b, k, t, h].  Without a cache, a forward attends to these: slot = position."""
        return cls(rearrange(key, "b t k h -> b k t h"), rearrange(value, "b t k h -> b k t h"))


class KVCache(NamedTuple):
    """One `LayerKV` for each layer that owns K/V, None for a layer that shares another's; `length` counts committed tokens."""

    layers: tuple[LayerKV | None, ...]
    length: Int[Array, " b"]


def init_cache(
    config: Config,
    batch: int = 1,
    capacity: int = 512,
    *,
    chunk: int | None = None,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> KVCache:
    """An empty cache for sequences of up to `capacity` tokens, rejected drafts included.

    chunk:  the most tokens that one forward may write; None allows `capacity`, and then rings save no memory.
    mesh:   the mesh of a target that is split over devices; the cache is split by KV heads, as the target is.
    Memory: full layers hold `capacity` tokens, sliding ones min(capacity, sliding_window + chunk).
    Errors: ValueError for a batch, capacity or chunk below 1.
    """
    if batch < 1 or capacity < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"init_cache: batch, capacity and chunk must be at least 1, got {batch}, {capacity}, {chunk}")
    ring = min(capacity, config.sliding_window + (capacity if chunk is None else chunk))

    def layer_kv(layer: int) -> LayerKV | None:
        if config.kv_source[layer] != layer:
            return None
        slots = ring if config.is_sliding(layer) else capacity
        shape = (batch, config.kv_heads(layer), slots, config.layer_head_dim(layer))
        sharding = None if mesh is None else kv_sharding(config.kv_heads(layer), mesh)
        # Two buffers, because each may be donated once.
        return LayerKV(jnp.zeros(shape, dtype, device=sharding), jnp.zeros(shape, dtype, device=sharding))

    return KVCache(tuple(map(layer_kv, range(config.num_hidden_layers))), jnp.zeros(batch, jnp.int32))


def write(
    kv: LayerKV, key: Float[Array, "b t k h"], value: Float[Array, "b t k h"], start: Int[Array, " b"]
) -> LayerKV:
    """Write the tokens at positions start .. start+t-1 of each row into their slots."""
    batch, time, heads = key.shape[:3]
    slots = (start[:, None] + jnp.arange(time)) % kv.capacity
    # Every axis but the last has an index of its own: rows [b, 1, 1], head [k, 1] and slots [b, 1, t] broadcast to [b, k, t].
    # With a slice for the heads, XLA would transpose the cache on a TPU.
    rows, head = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None]

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        return buffer.at[rows, head, slots[:, None]].set(new.astype(buffer.dtype), unique_indices=True)

    new = LayerKV.of(key, value)
    return LayerKV(put(kv.key, new.key), put(kv.value, new.value))


def slot_positions(last: Int[Array, " b"], capacity: int) -> Int[Array, "b s"]:
    """The absolute position that each slot holds when `last` is the newest one written; negative: the slot is empty.

    >>> slot_positions(jnp.array([5]), capacity=4).tolist()
    [[4, 5, 2, 3]]
    >>> slot_positions(jnp.array([1]), capacity=4).tolist()
    [[0, 1, -2, -1]]
    """
    slots = jnp.arange(capacity)
    return last[:, None] - (last[:, None] - slots) % capacity


def truncate(cache: KVCache, length: Int[Array, " b"]) -> KVCache:
    """Forget every token from position `length` on.  Only tokens of the last forward may be forgotten.

    Not checked: further back, a sliding layer's ring no longer holds the keys that the next query sees.
    """
    return cache._replace(length=length)


@functools.partial(jax.jit, static_argnames=("config", "capacity", "chunk"))
def resize(cache: KVCache, config: Config, capacity: int, *, chunk: int) -> KVCache:
    """The same tokens in a cache of the size that `init_cache(config, batch, capacity, chunk=chunk)` has.

    Every slot gets the position that it holds by the rule.  What no later query can see may be lost: in sliding layers, tokens
    before the window.  Not checked: a smaller capacity must still hold all tokens.
    """
    dtype = next(kv.key.dtype for kv in cache.layers if kv)
    sizes = jax.eval_shape(lambda: init_cache(config, len(cache.length), capacity, chunk=chunk, dtype=dtype))

    def moved(old: LayerKV, new: LayerKV) -> LayerKV:
        positions = slot_positions(cache.length - 1, new.capacity)
        slots = (positions % old.capacity)[:, None, :, None]  # of an empty slot: anything
        return LayerKV(*(jnp.take_along_axis(buffer, slots, axis=2) for buffer in old))

    layers = zip(cache.layers, sizes.layers, strict=True)
    return cache._replace(layers=tuple(moved(old, new) if old and new else None for old, new in layers))


def check_room(config: Config, cache: KVCache, batch: int, time: int) -> None:
    """Refuse a write that does not fit.  Under jit, an index past the end would overwrite other slots silently.

    Errors: ValueError for another batch size, for more tokens than one forward may write and, outside jit, for a full cache.
    """
    if cache.length.shape[0] != batch:
        raise ValueError(f"the cache was built for batch {cache.length.shape[0]}, but tokens have batch {batch}")
    capacities = [kv.capacity for layer, kv in enumerate(cache.layers) if kv and not config.is_sliding(layer)]
    rings = [kv.capacity for layer, kv in enumerate(cache.layers) if kv and config.is_sliding(layer)]
    for ring in rings:
        # A ring as large as the full layers never wraps, so any number of tokens may be written at once.
        chunk = ring if ring == min(capacities) else ring - config.sliding_window
        if time > chunk:
            raise ValueError(
                f"{time} tokens in one forward, but this cache takes at most {chunk} at a time; "
                f"feed them in chunks, or build the cache with init_cache(..., chunk={time})"
            )
    if isinstance(cache.length, Tracer):
        return
    longest, capacity = int(np.asarray(cache.length).max()), min(capacities)
    if (needed := longest + time) > capacity:
        raise ValueError(
            f"the cache holds {capacity} tokens, but {longest} are in it and {time} more were given; "
            f"build it with init_cache(..., capacity={needed}) or more"
        )
