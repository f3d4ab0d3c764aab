"""What a drafter sees of the target's cache: two read-only views and their length.

The donors are the last layer of each type that owns K/V (E2B: 13 and 14 of 35), not the last two layers of the model:
`gemma4.Config.donors`.
"""

from typing import NamedTuple, cast

from jaxtyping import Array, Int

from gemma4.cache import KVCache, LayerKV
from gemma4.config import Config


class SharedCache(NamedTuple):
    donors: dict[str, LayerKV]  # layer type -> the target's K/V, in its slots (position p in slot p % capacity)
    length: Int[Array, " b"]  # committed tokens n; the slots of later positions are never read


def share_cache(cache: KVCache, target_config: Config) -> SharedCache:
    """The donor views of `cache`.  Nothing is copied: under jit these are the same buffers."""
    donors = {kind: cast(LayerKV, cache.layers[layer]) for kind, layer in target_config.donors.items()}
    return SharedCache(donors, cache.length)
