"""What the drafter sees of the target's cache."""

import jax

import drafter
import gemma4
from gemma4 import PRESETS


def test_share_cache_gives_the_last_owner_of_each_type():
    """E2B: layers 15 to 34 own nothing; 13 is the last sliding one that does, 14 the last full one.  Nothing is copied."""
    cache = jax.eval_shape(lambda: gemma4.init_cache(PRESETS["E2B"], 1, 64, chunk=8))
    shared = drafter.share_cache(cache, PRESETS["E2B"])
    assert shared.donors["sliding_attention"] is cache.layers[13]
    assert shared.donors["full_attention"] is cache.layers[14]
    assert shared.length is cache.length
