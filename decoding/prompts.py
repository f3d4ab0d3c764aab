"""Prompts as users give them: one or several, of different lengths, checked before anything runs."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from decoding.sampling import has_key_per_row
from gemma4 import Config
from gemma4.model import check_ids

Prompts = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | jax.Array


def validate_key(key: Any, rows: int) -> jax.Array:
    """The key itself, or one for each row; key 0 for None.  Errors: ValueError for anything else."""
    if key is None:
        return jax.random.key(0)
    if isinstance(key, jax.Array) and has_key_per_row(key) and len(key) == rows:
        return key
    try:
        jax.eval_shape(jax.random.split, key)
    except (TypeError, ValueError):
        raise ValueError(
            f"key: expected jax.random.key(seed), or an array of {rows} such keys, one for each row, got {key!r:.80}"
        ) from None
    return key


def unpadded(prompt_tokens: Any, attention_mask: Any) -> Any:
    """The prompts without their padding, on either side: what the mask, 1 for a token and 0 for padding, calls tokens.

    As transformers' tokenizers return both (`input_ids`, `attention_mask`), [b, t] or [t].  Without a mask, the prompts as
    they are.  Errors: ValueError for another shape than the ids', other values, and padding between tokens.
    """
    if attention_mask is None:
        return prompt_tokens
    try:
        ids, mask = np.asarray(prompt_tokens), np.asarray(attention_mask)
    except (TypeError, ValueError):  # ragged
        ids = mask = np.zeros(0, object)
    if ids.ndim not in (1, 2) or ids.shape != mask.shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "attention_mask: expected 0 or 1 for each id of an array [b, t] or [t], got ids of shape "
            f"{np.shape(ids)} and a mask of shape {np.shape(mask)}"
        )
    rows = []
    for number, (row, kept) in enumerate(zip(np.atleast_2d(ids), np.atleast_2d(mask).astype(bool), strict=True)):
        if (np.diff(kept.astype(np.int8)) == 1).sum() + kept[:1].sum() > 1:
            raise ValueError(f"attention_mask: row {number}: expected padding at an end, got some between tokens")
        rows.append(row[kept])
    return rows if ids.ndim == 2 else rows[0]


def validate_prompts(config: Config, prompt_tokens: object, max_new_tokens: int) -> list[list[int]]:
    """A batch of non-empty prompts of token ids, each with room for `max_new_tokens` in the model's context.

    Errors: ValueError that names the prompt.
    """
    context = config.max_position_embeddings
    rows, is_batch = _rows(prompt_tokens)
    for number, row in enumerate(rows):
        name = f"prompt {number}" if is_batch else "the prompt"
        if not len(row):
            raise ValueError(f"{name} is empty: expected at least one token (begin a text with the BOS token)")
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"{name}: expected token ids, whole numbers, got {row.dtype}")
        check_ids(config, row[None])
        room = context - len(row)
        if room < max_new_tokens:
            ask = f", or ask for at most {room} new tokens" if room > 0 else ""
            raise ValueError(
                f"{name} has {len(row)} tokens, and {max_new_tokens} new ones exceed this model's context of {context}: "
                f"shorten the prompt{ask}"
            )
    return [row.tolist() for row in rows]


def _rows(prompt_tokens: Any) -> tuple[list[np.ndarray], bool]:
    """1-D arrays of whatever was given, and whether it was a batch."""
    try:
        if isinstance(prompt_tokens, (str, bytes, Set, Mapping)) or not isinstance(prompt_tokens, Iterable):
            raise ValueError
        items: Any = prompt_tokens if hasattr(prompt_tokens, "shape") else list(prompt_tokens)
        is_batch = len(items) > 0 and all(np.ndim(item) == 1 for item in items)
        rows = [np.asarray(row) for row in (items if is_batch else [items])]
        if any(row.ndim != 1 for row in rows):
            raise ValueError
    except (TypeError, ValueError):  # NumPy's, too, for ragged or nested input
        raise ValueError(
            "prompt_tokens: expected the token ids of a prompt, such as [2, 17, 94], or a list of such prompts, got "
            f"{prompt_tokens!r:.80}"
        ) from None
    return rows, is_batch
