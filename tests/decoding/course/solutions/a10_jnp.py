"""Right, in jax.numpy."""

import jax.numpy as jnp


def with_next_token(draft_tokens, num_accepted, next_token):
    longer = jnp.concatenate([draft_tokens, next_token[:, None]], axis=1)
    return longer.at[jnp.arange(len(longer)), num_accepted].set(next_token)


def count_emitted(tokens, num_tokens, room, done, eos_ids):
    allowed = jnp.minimum(num_tokens, room)
    is_eos = (tokens[..., None] == eos_ids).any(axis=-1) & (jnp.arange(tokens.shape[1]) < allowed[:, None])
    has_eos = is_eos.any(axis=1)
    count = jnp.where(has_eos, is_eos.argmax(axis=1) + 1, allowed) * ~done
    return count, done | has_eos | (count == room)


def committed_length(length_before, num_written, num_emitted):
    return length_before + num_emitted


def next_start(tokens, hidden, num_emitted, token_before, hidden_before):
    longer = jnp.concatenate([token_before[:, None], tokens], axis=1)
    states = jnp.concatenate([hidden_before[:, None], hidden], axis=1)
    rows = jnp.arange(len(tokens))
    return longer[rows, num_emitted], states[rows, num_emitted]
