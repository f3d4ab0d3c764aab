"""Drafts by script: what a round does with its drafts can then be decided beforehand, whatever the drafter thinks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from decoding.stages.draft import Draft

BY_ITSELF = -1  # in a script: here the drafter chooses


def scripted(
    draft: Callable[..., Draft], script: jax.Array, on_draft: Callable[[Draft], object] = lambda block: None
) -> Callable[..., Draft]:
    """`decoding.stages.draft`, but where `script` [b, positions] has a token for a position, that is proposed, with certainty.

    on_draft: sees what the drafter itself proposed.
    """

    def by_script(target, draft_model, token, hidden, shared, *rest, draft_length, **settings) -> Draft:
        block = draft(target, draft_model, token, hidden, shared, *rest, draft_length=draft_length, **settings)
        on_draft(block)
        positions = shared.length[:, None] + 1 + jnp.arange(draft_length)
        proposed = jnp.take_along_axis(script, positions, axis=1)
        certain = jax.nn.one_hot(proposed, block.probs.shape[-1], dtype=jnp.float32)
        is_scripted = proposed != BY_ITSELF
        return Draft(
            jnp.where(is_scripted, proposed, block.tokens), jnp.where(is_scripted[..., None], certain, block.probs)
        )

    return by_script
