"""What a caller may ask of `generate`.  Each check returns the value as the loop wants it, or raises a ValueError that says
what was expected and what came.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from decoding.sampling import Sampling
from decoding.speculative import LONGEST_DRAFT, rule_of
from gemma4 import Gemma4
from gemma4.model import check_tokens
from gemma4.sharding import mesh_of

Model = TypeVar("Model")
Prompts = Sequence[int] | Sequence[Sequence[int]]


def check_model(name: str, model: object, kind: type[Model]) -> Model:
    if not isinstance(model, kind):
        raise ValueError(f"{name}: expected a {kind.__name__} (decoding.load_pair() returns one), got {model!r:.80}")
    return model


def check_draft_length(draft_length: object, least: int = 1) -> int:
    """least .. LONGEST_DRAFT."""
    length = whole_number("draft_length", draft_length)
    if not least <= length <= LONGEST_DRAFT:
        raise ValueError(f"draft_length: expected {least} to {LONGEST_DRAFT} tokens a round, got {length}")
    return length


def check_max_new_tokens(max_new_tokens: object) -> int:
    count = whole_number("max_new_tokens", max_new_tokens)
    if count < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {count}")
    return count


def check_sampling(sampling: object) -> Sampling:
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling: expected decoding.Sampling(temperature, top_k, top_p), got {sampling!r}")
    return sampling.check()


def check_acceptance(acceptance: object) -> str:
    rule_of(acceptance)
    return acceptance


def check_eos_ids(eos_ids: object) -> tuple[int, ...]:
    try:
        ids = tuple(map(operator.index, eos_ids))
    except TypeError:
        raise ValueError(f"eos_ids: expected token ids, such as (1, 106), got {eos_ids!r}") from None
    if not all(0 <= i < 2**31 for i in ids):
        raise ValueError(f"eos_ids: expected token ids from 0 up, got {ids}")
    return ids


def check_threads(threads: object, target: Gemma4, on_device: bool) -> int:
    count = whole_number("threads", threads)
    if count < 1:
        raise ValueError(f"threads: expected at least 1, got {count}")
    if count > 1 and not on_device:
        raise ValueError(
            f"threads: {count} of them run all rounds on the device alone; give on_device=True, or one thread"
        )
    mesh = mesh_of(target.embed_tokens.weight[...])
    if count > 1 and mesh is not None and mesh.size > 1:  # devices that wait for each other, in another order each
        raise ValueError(f"threads: expected 1 for a target that is split over several devices, got {count}")
    return count


def check_key(key: object) -> PRNGKeyArray:
    """Key 0 in place of None."""
    if key is None:
        return jax.random.key(0)
    try:
        jax.eval_shape(jax.random.split, key)
    except (TypeError, ValueError):
        raise ValueError(f"key: expected jax.random.key(seed), got {key!r}") from None
    return key


def check_prompts(target: Gemma4, prompt_tokens: object, max_new_tokens: int) -> list[list[int]]:
    """A batch of non-empty prompts of the target's token ids, each with room for `max_new_tokens` in its context."""
    context = target.config.max_position_embeddings
    rows, is_batch = _rows(prompt_tokens)
    for number, row in enumerate(rows):
        name = f"prompt {number}" if is_batch else "the prompt"
        if not len(row):
            raise ValueError(f"{name} is empty: expected at least one token (begin a text with the BOS token)")
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"{name}: expected token ids, whole numbers, got {row.dtype}")
        check_tokens(target.config, row[None])
        room = context - len(row)
        if room < max_new_tokens:
            ask = f", or ask for at most {room} new tokens" if room > 0 else ""
            raise ValueError(
                f"{name} has {len(row)} tokens, and {max_new_tokens} new ones go past this model's context of {context}: "
                f"shorten the prompt{ask}"
            )
    return [row.tolist() for row in rows]


def _rows(prompt_tokens: object) -> tuple[list[np.ndarray], bool]:
    """1-D arrays of whatever was given, and whether it was a batch."""
    try:
        if isinstance(prompt_tokens, (str, bytes, Set, Mapping)) or not isinstance(prompt_tokens, Iterable):
            raise ValueError
        items = prompt_tokens if hasattr(prompt_tokens, "shape") else list(prompt_tokens)
        is_batch = len(items) > 0 and all(np.ndim(item) == 1 for item in items)
        rows = [np.asarray(row) for row in (items if is_batch else [items])]
        if any(row.ndim != 1 for row in rows):
            raise ValueError
    except (TypeError, ValueError):  # NumPy's, too, where rows are no rows
        raise ValueError(
            "prompt_tokens: expected the token ids of a prompt, such as [2, 17, 94], or a list of such prompts, got "
            f"{prompt_tokens!r:.80}"
        ) from None
    return rows, is_batch


def whole_number(name: str, value: object) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {value!r}") from None
