"""Stage 4: which tokens a round emits, where that ends, and what the next round begins from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from gemma4.model import one_row


def with_next_token(
    draft_tokens: Int[Array, "b gamma"], num_accepted: Int[Array, " b"], next_token: Int[Array, " b"]
) -> Int[Array, "b gamma+1"]:
    """[d1 .. dn, next, ...]: what a round emits, and rejected drafts after it."""
    places = jnp.arange(draft_tokens.shape[1] + 1, dtype=jnp.int32)
    padded = jnp.pad(draft_tokens, ((0, 0), (0, 1)))
    return jnp.where(places == num_accepted[:, None], next_token[:, None], padded)


@jax.named_scope("emit")
def count_emitted(
    tokens: Int[Array, "b t"],
    num_tokens: Int[Array, " b"],
    room: Int[Array, " b"],
    done: Bool[Array, " b"],
    eos_ids: tuple[int, ...],
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """How many of a round's first `num_tokens` tokens count, and which rows are done after them.

    A run ends after its first EOS, wherever that stands, and after `room` tokens, what is left of the budget (at least 1
    unless the row is `done`); a row that was done emits nothing.
    Example: tokens [5, 1, 7, 9], num_tokens 3, room 8, eos_ids (1,) count 2, and the row is done.
    """
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    is_eos = jnp.isin(tokens, jnp.array(eos_ids, jnp.int32))  # also among the rejected, where it ends nothing
    first_eos = jnp.where(is_eos, places, tokens.shape[1]).min(axis=1)
    num_emitted = jnp.where(done, 0, jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room))
    return num_emitted, done | (num_emitted == room) | (first_eos < num_emitted)


def row_at(
    rows: Shaped[Array, "b t *rest"], index: Int[Array, " b"], otherwise: Shaped[Array, "b *rest"]
) -> Shaped[Array, "b *rest"]:
    """rows[i, index[i]] of each batch row i; `otherwise[i]` where the index is negative (a row that stood still)."""
    chosen = one_row(rows, index)[:, 0]
    return jnp.where((index < 0).reshape(-1, *[1] * (otherwise.ndim - 1)), otherwise, chosen)
