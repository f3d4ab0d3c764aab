"""Stage 5: forget the rejected drafts.  The cache's rule makes this one assignment (`gemma4/cache.py` has the proof)."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from gemma4 import KVCache, truncate


def rollback(cache: KVCache, length_before: Int[Array, " b"], num_kept: Int[Array, " b"]) -> KVCache:
    """Of the tokens that verify wrote from `length_before` on, keep `num_kept`: the token it was given, then accepted drafts.

    That is num_accepted + 1 in a full round (the next token is not in the cache yet), fewer where a row ended earlier.
    """
    return truncate(cache, jnp.asarray(length_before) + jnp.asarray(num_kept))
