"""What one round hands to the next: a plain pytree."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from gemma4 import KVCache


class Round(NamedTuple):
    """What the last round did, for people and statistics.  Before the first: nothing drafted, the prefill's token emitted."""

    draft_tokens: Int[Array, "b gamma"]
    num_accepted: Int[Array, " b"]  # 0..gamma; how many of them the target agreed to
    tokens: Int[Array, "b gamma+1"]  # the accepted ones, then the target's own; the rest has no meaning
    num_emitted: Int[Array, " b"]  # how many of `tokens` count: cut after an EOS or where the budget ends; 0 once done


class DecodeState(NamedTuple):
    """Invariant after the prefill and after every round: cache.length == prompt length + emitted - 1, row by row.

    (The newest token is not in the cache yet: the next round's verify writes it.)
    """

    cache: KVCache
    token: Int[Array, " b"]  # the newest emitted token
    hidden: Float[Array, "b d"]  # the target's hidden row that predicted it
    key: jax.Array
    emitted: Int[Array, " b"]  # tokens emitted so far
    budget: Int[Array, " b"]  # tokens to emit at most
    done: Bool[Array, " b"]  # EOS emitted, or budget used up
    last: Round
