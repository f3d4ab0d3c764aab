"""What the oracle asks of an implementation: one engine holds one target and its drafter, and has a function a stage.

Derive from `Engine`, fill in what you can offer, and write a function `load(target_dir, drafter_dir, convention) -> Engine`;
then `gemma4-mtp oracle check --adapter your_module:load` does the rest.  All arrays are NumPy; everything marked opaque belongs
to the engine.  `tutorials/oracle_format.md` has an example of one function, `adapters/hf.py` one of all.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from decoding.sampling import Sampling

Tensors = dict[
    str, np.ndarray
]  # by name; `logits` and `hidden` always, every other tap as far as the engine can show it


class SharedRows(NamedTuple):
    """What a drafter may read of the target's cache, by absolute position."""

    rows: Tensors  # "full_attention.key" and so on: [b, kv_heads, positions, head_dim], position p at index p
    lengths: Int[np.ndarray, " b"]  # committed tokens: positions from here on hold values that nothing may read


class DraftBlock(NamedTuple):
    tokens: Int[np.ndarray, "b gamma"]
    told: Float[np.ndarray, "b gamma v"]  # the law that acceptance is told each token was drawn from


class Decision(NamedTuple):
    num_accepted: Int[np.ndarray, " b"]
    next_token: Int[np.ndarray, " b"]


class Engine:
    """An implementation under test.  Tokens are int32; `cache` and `shared` are opaque.

    A function that is left out counts as not offered, as does one that raises NotImplementedError.
    """

    # -- the target --------------------------------------------------------------------------------------------------------

    def rotated(self, layer_type: str, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """RoPE of one layer type.  x [t, heads, head_dim], positions [t] -> [t, heads, head_dim]."""
        raise NotImplementedError

    def forward(self, tokens: Int[np.ndarray, "b t"]) -> Tensors:
        """One pass without a cache: every tap, [b, t, ...]."""
        raise NotImplementedError

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, room: int) -> tuple[list[Tensors], Any]:
        """Read prompts of different lengths, `chunk` tokens at a time; a cache with room for `room` tokens a row.

        Returns each row's taps, [length, ...], and the cache.
        """
        raise NotImplementedError

    def verify(
        self, cache: Any, token: Int[np.ndarray, " b"], drafts: Int[np.ndarray, "b gamma"]
    ) -> tuple[Tensors, Any]:
        """One forward over [token, d1 .. dgamma] after what the cache holds; all are written.

        Returns the taps, [b, gamma + 1, ...], of which `logits` and `hidden` are compared, and the cache.
        """
        raise NotImplementedError

    def rollback(self, cache: Any, num_kept: Int[np.ndarray, " b"]) -> Any:
        """Of the block that the last `verify` wrote, keep the first `num_kept` tokens of each row."""
        raise NotImplementedError

    # -- the drafter -------------------------------------------------------------------------------------------------------

    def share(self, cache: Any) -> Any:
        """What the drafter reads of the cache."""
        raise NotImplementedError

    def shared_rows(self, shared: Any) -> SharedRows:
        """`shared` by position.  Positions that the engine has forgotten may hold anything."""
        raise NotImplementedError

    def shared_from(self, rows: SharedRows) -> Any:
        """The opposite: the engine's own form of given rows."""
        raise NotImplementedError

    def draft_step(self, shared: Any, token: Int[np.ndarray, " b"], hidden: Float[np.ndarray, "b d"]) -> Tensors:
        """One draft step: taps [b, ...]; `logits` [b, v] and `post_projection` [b, d] always."""
        raise NotImplementedError

    def draft(self, shared: Any, token: np.ndarray, hidden: np.ndarray, draft_length: int) -> DraftBlock:
        """A greedy block of drafts, each step fed by the one before it."""
        raise NotImplementedError

    # -- acceptance --------------------------------------------------------------------------------------------------------

    def law(self, logits: Float[np.ndarray, "rows v"], sampling: Sampling) -> Float[np.ndarray, "rows v"]:
        """The target's law under these settings."""
        raise NotImplementedError

    def draft_laws(self, logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """The law that drafts are drawn from, and the one that acceptance is told.  Lossless engines: twice the same."""
        raise NotImplementedError

    def accept(
        self,
        target_probs: Float[np.ndarray, "b gamma+1 v"],
        drafts: Int[np.ndarray, "b gamma"],
        draft_probs: Float[np.ndarray, "b gamma v"],
        uniforms: Float[np.ndarray, "b gamma+1"],
    ) -> Decision:
        """Sampled acceptance as a function of its random numbers, in [0, 1): one a draft, the last for the next token.

        The next token is the one at which the running sum of its law passes the last number.
        """
        raise NotImplementedError

    def accept_block(
        self,
        target_probs: Float[np.ndarray, "b gamma+1 v"],
        drafts: Int[np.ndarray, "b gamma"],
        draft_probs: Float[np.ndarray, "b gamma v"],
        uniforms: Float[np.ndarray, "b gamma+1"],
    ) -> Decision:
        """The same by block (`decoding/accept_block.py`), for engines that have it."""
        raise NotImplementedError

    def accept_greedy(self, logits: Float[np.ndarray, "b gamma+1 v"], drafts: Int[np.ndarray, "b gamma"]) -> Decision:
        """Acceptance where the target is greedy."""
        raise NotImplementedError

    # -- the loop ----------------------------------------------------------------------------------------------------------

    def emitted(
        self, tokens: Int[np.ndarray, "b t"], num_tokens: np.ndarray, room: np.ndarray, eos_ids: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many of a run's first `num_tokens` tokens count with `room` left in the budget, and which rows end there."""
        raise NotImplementedError

    def rounds(
        self,
        prompts: Sequence[Sequence[int]],
        script: Int[np.ndarray, "b positions"],
        draft_length: int,
        max_new_tokens: int,
        eos_ids: tuple[int, ...],
    ) -> list[Tensors]:
        """The engine's own greedy loop, with drafts by script: verify `script[row, position]` where that is not -1.

        Until every row has ended, by EOS or budget, and for each round: `own_drafts` [b, gamma] (what the drafter proposed
        before the script replaced it), `tokens` [b, gamma + 1] and how many of them count in `num_emitted` [b] (0 for a row
        that had ended), `hidden` [b, d] for the next round, `length` [b] of the cache.
        """
        raise NotImplementedError


Load = Callable[[Path, Path, str], Engine]  # (target_dir, drafter_dir, convention)
FUNCTIONS = tuple(name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_"))
