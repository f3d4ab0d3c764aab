"""Scripted drafts, which decide beforehand what a round does with its drafts, whatever the drafter proposes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from decoding.stages.draft import Draft
from drafter import Drafter, SharedCache
from gemma4 import Gemma4

BY_ITSELF = -1  # in a script: here the drafter's own proposal stays


def scripted(
    draft: Callable[..., Draft], script: jax.Array, on_draft: Callable[[Draft], object] = lambda drafted: None
) -> Callable[..., Draft]:
    """`decoding.stages.draft.draft`, but where `script` [b, positions] has a token for a position, that token is the draft.

    A scripted draft's distribution is one-hot.  `decoding.round.draft` is the name to patch.
    on_draft: receives the drafter's own proposal.
    """

    def by_script(
        target: Gemma4,
        draft_model: Drafter,
        token: jax.Array,
        hidden: jax.Array,
        shared: SharedCache,
        *rest: Any,
        draft_length: int,
        **settings: Any,
    ) -> Draft:
        drafted = draft(target, draft_model, token, hidden, shared, *rest, draft_length=draft_length, **settings)
        on_draft(drafted)
        positions = shared.length[:, None] + 1 + jnp.arange(draft_length)
        proposed = jnp.take_along_axis(script, positions, axis=1)
        one_hot = jax.nn.one_hot(proposed, drafted.probs.shape[-1], dtype=jnp.float32)
        is_scripted = proposed != BY_ITSELF
        return Draft(
            jnp.where(is_scripted, proposed, drafted.tokens), jnp.where(is_scripted[..., None], one_hot, drafted.probs)
        )

    return by_script
