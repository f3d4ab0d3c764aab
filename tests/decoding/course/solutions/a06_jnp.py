"""Right, by recursion."""

import jax.numpy as jnp


def draft(embed, step, probs, choose, token, hidden, uniforms):
    vector, after = step(embed(token), hidden)
    told = jnp.asarray(probs(vector))
    drafted = jnp.asarray(choose(told, uniforms[0]))
    if len(uniforms) == 1:
        return drafted[:, None], told[:, None]
    tokens, rest = draft(embed, step, probs, choose, drafted, after, uniforms[1:])
    return jnp.concatenate([drafted[:, None], tokens], axis=1), jnp.concatenate([told[:, None], rest], axis=1)
