"""Stage 4: which tokens a round emits.  A text is cut after its first EOS and at the end of its budget."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def with_next_token(
    draft_tokens: Int[Array, "b gamma"], num_accepted: Int[Array, " b"], next_token: Int[Array, " b"]
) -> Int[Array, "b gamma+1"]:
    """[d1 .. dn, next, ...]: the accepted drafts, the target's own token, and after it values without meaning."""
    index = jnp.arange(draft_tokens.shape[1] + 1, dtype=jnp.int32)
    padded = jnp.pad(draft_tokens, ((0, 0), (0, 1)))
    return jnp.where(index == num_accepted[:, None], next_token[:, None], padded)


@jax.named_scope("emit")
def count_emitted(
    tokens: Int[Array, "b t"],
    num_tokens: Int[Array, " b"],
    room: Int[Array, " b"],
    done: Bool[Array, " b"],
    eos_ids: Sequence[int] | Int[Array, " n"],
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """How many of a round's first `num_tokens` tokens are emitted, and which rows are done after them.

    A row ends after its first EOS, even inside an accepted run, and after `room` tokens, the rest of its budget (at least 1
    unless the row is `done`).  A row that was done emits nothing.

    >>> tokens = jnp.array([[5, 1, 7, 9]])  # 1 is an EOS
    >>> num_emitted, done = count_emitted(tokens, jnp.array([3]), jnp.array([8]), jnp.array([False]), eos_ids=(1,))
    >>> num_emitted.tolist(), done.tolist()
    ([2], [True])
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    is_eos = jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32))  # also among rejected drafts, where it ends nothing
    first_eos = jnp.where(is_eos, index, tokens.shape[1]).min(axis=1)
    num_emitted = jnp.where(done, 0, jnp.minimum(jnp.minimum(num_tokens, first_eos + 1), room))
    return num_emitted, done | (num_emitted == room) | (first_eos < num_emitted)
