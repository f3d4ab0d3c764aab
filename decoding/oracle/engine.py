"""What the oracle asks of an implementation: an engine holds one target and its drafter, and has one method a stage.

Derive from `Engine`, implement the methods that your engine can offer, and write a function
`load(target_dir, drafter_dir, convention) -> Engine`; `gemma4-mtp oracle check --adapter your_module:load` does the rest.
All arrays are NumPy; everything marked opaque belongs to the engine.  `tutorials/reference/oracle_format.md` has an example
with one method, `adapters/hf.py` one with all of them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from decoding.sampling import Sampling

# By name.  `logits` and `hidden` are required, every other tap is optional.
Tensors = dict[str, np.ndarray]


class OracleError(ValueError):
    """A mistake in the oracle's input.  The message names the thing, what was expected, what came, what to do."""


class SharedKV(NamedTuple):
    """The part of the target's cache that a drafter reads, by absolute position."""

    kv: Tensors  # "full_attention.key" and so on: [b, kv_heads, positions, head_dim], position p at index p
    lengths: Int[np.ndarray, " b"]  # committed tokens; later positions hold values that nothing may read


class DraftBlock(NamedTuple):
    tokens: Int[np.ndarray, "b gamma"]
    claimed: Float[np.ndarray, "b gamma v"]  # the draft distribution that acceptance receives for each token


class Decision(NamedTuple):
    num_accepted: Int[np.ndarray, " b"]
    next_token: Int[np.ndarray, " b"]


class Engine:
    """An implementation under test.  Tokens are int32; `cache` and `shared` are opaque.

    A method that is not overridden counts as not offered, as does one that raises NotImplementedError.  An engine may offer a
    part of a stage, such as `accept` without `accept_greedy`: that part is checked.
    """

    # -- the target --------------------------------------------------------------------------------------------------------

    def rotated(self, layer_type: str, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """RoPE of one layer type.  x [t, heads, head_dim], positions [t] -> [t, heads, head_dim]."""
        raise NotImplementedError

    def forward(self, tokens: Int[np.ndarray, "b t"]) -> Tensors:
        """One pass without a cache: every tap, [b, t, ...]."""
        raise NotImplementedError

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, room: int) -> tuple[list[Tensors], Any]:
        """Read prompts of different lengths, `chunk` tokens at a time.  Up to 8 forwards of at most `room` tokens follow.

        Returns each row's taps, [length, ...], and the cache.
        """
        raise NotImplementedError

    def verify(
        self, cache: Any, token: Int[np.ndarray, " b"], drafts: Int[np.ndarray, "b gamma"]
    ) -> tuple[Tensors, Any]:
        """One forward over [token, d1 .. dgamma] after the cache's tokens; all of them are written.

        Returns the taps, [b, gamma + 1, ...], of which `logits` and `hidden` are compared, and the cache.
        """
        raise NotImplementedError

    def rollback(self, cache: Any, num_kept: Int[np.ndarray, " b"]) -> Any:
        """Of the block that the last `verify` wrote, keep the first `num_kept` tokens of each row."""
        raise NotImplementedError

    # -- the drafter -------------------------------------------------------------------------------------------------------

    def share(self, cache: Any) -> Any:
        """The part of the cache that the drafter reads."""
        raise NotImplementedError

    def shared_kv(self, shared: Any) -> SharedKV:
        """`shared` by position.  Positions that the engine has forgotten may hold anything."""
        raise NotImplementedError

    def shared_from(self, given: SharedKV) -> Any:
        """The opposite: K/V by position in the engine's own form."""
        raise NotImplementedError

    def draft_step(self, shared: Any, token: Int[np.ndarray, " b"], hidden: Float[np.ndarray, "b d"]) -> Tensors:
        """One draft step: taps [b, ...].  `logits` [b, v] and `post_projection` [b, d] are required."""
        raise NotImplementedError

    def draft(self, shared: Any, token: np.ndarray, hidden: np.ndarray, draft_length: int) -> DraftBlock:
        """A greedy block of drafts.  Each step reads the token and the hidden state of the step before it."""
        raise NotImplementedError

    # -- acceptance --------------------------------------------------------------------------------------------------------

    def token_probs(self, logits: Float[np.ndarray, "n v"], sampling: Sampling) -> Float[np.ndarray, "n v"]:
        """The target's distribution under these settings."""
        raise NotImplementedError

    def draft_probs(self, logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """(drawn, claimed): the distribution that drafts are drawn from, and the one that acceptance receives.

        Speculative sampling is exact only if they are equal.
        """
        raise NotImplementedError

    def accept(
        self,
        target_probs: Float[np.ndarray, "b t v"],  # t = gamma + 1
        drafts: Int[np.ndarray, "b gamma"],
        draft_probs: Float[np.ndarray, "b gamma v"],
        uniforms: Float[np.ndarray, "b gamma+1"],
    ) -> Decision:
        """Sampled acceptance as a function of its random numbers, in [0, 1): one a draft, the last for the next token.

        The next token is the one at which the running sum of its distribution exceeds the last number.
        """
        raise NotImplementedError

    def accept_block(
        self,
        target_probs: Float[np.ndarray, "b t v"],  # t = gamma + 1
        drafts: Int[np.ndarray, "b gamma"],
        draft_probs: Float[np.ndarray, "b gamma v"],
        uniforms: Float[np.ndarray, "b gamma+1"],
    ) -> Decision:
        """The same by block verification (`decoding/stages/accept_block.py`), for engines that have it."""
        raise NotImplementedError

    def accept_greedy(self, logits: Float[np.ndarray, "b t v"], drafts: Int[np.ndarray, "b gamma"]) -> Decision:
        """Acceptance where the target is greedy; t = gamma + 1."""
        raise NotImplementedError

    # -- the loop ----------------------------------------------------------------------------------------------------------

    def emitted(
        self, tokens: Int[np.ndarray, "b t"], num_tokens: np.ndarray, room: np.ndarray, eos_ids: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many of the first `num_tokens` tokens are emitted with `room` left in the budget, and which rows end there."""
        raise NotImplementedError

    def rounds(
        self,
        prompts: Sequence[Sequence[int]],
        script: Int[np.ndarray, "b positions"],
        draft_length: int,
        max_new_tokens: int,
        eos_ids: tuple[int, ...],
    ) -> list[Tensors]:
        """The engine's own greedy loop with scripted drafts: verify `script[row, position]` where that is not -1.

        Runs until every row has ended, by EOS or budget.  For each round: `own_drafts` [b, gamma] (the drafter's proposal
        before the script replaced it), `tokens` [b, gamma + 1] and how many of them are emitted in `num_emitted` [b] (0 for
        a row that had ended), `hidden` [b, d] for the next round, `length` [b] of the cache.
        """
        raise NotImplementedError


Load = Callable[[Path, Path, str], Engine]  # (target_dir, drafter_dir, convention)
FUNCTIONS = tuple(name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_"))
