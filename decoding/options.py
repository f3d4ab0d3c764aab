"""The settings that a round reads: one record, validated when it is made, so that nothing below has to look again."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax

from decoding.processors import Processor, as_processors
from decoding.sampling import REFERENCE, Kernels, Sampling, padded_ids, token_ids

MAX_DRAFT_LENGTH = 32  # acceptance falls with every position, so longer drafts gain nothing
ACCEPTANCE_METHODS = ("token", "block")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Options:
    """What a round needs besides models and state.

    A pytree: `sampling`, `draft_sampling`, `eos_ids` and `processors` are arguments of compiled code; `STATIC`, and the flags
    of `Sampling`, decide what is compiled.

    draft_length:   gamma, the tokens that the drafter proposes a round, 0 .. MAX_DRAFT_LENGTH; 0 without a drafter.
    sampling:       of the target: the distribution that the text is drawn from.
    draft_sampling: of the drafter; like `sampling` unless given.  It changes how many drafts are accepted, never the
                    distribution of the text.
    eos_ids:        token ids that end a text.
    acceptance:     "token" (`stages/accept.py`) or "block" (`stages/accept_block.py`), which are the same for greedy decoding;
                    or a rule of your own, a function with the arguments and the result of `stages.accept.decide`.
    processors:     changes of the target's distribution (`processors.py`), applied in this order before `sampling`.
    logprobs:       whether rounds tell the log-probability of each token (`sampling.token_logprobs`).
    kernels:        the functions over the vocabulary; `decoding/fast` has forms of the same numbers for a machine.
    Errors:         ValueError that names the setting, what was expected and what came.
    """

    draft_length: int = 4
    sampling: Sampling = Sampling()
    draft_sampling: Sampling | None = None
    eos_ids: Sequence[int] = ()  # kept as a tuple
    acceptance: str | Callable = "token"
    processors: Sequence[Processor] = ()  # kept as a tuple
    logprobs: bool = False
    kernels: Kernels = REFERENCE

    def __post_init__(self):
        if self.draft_sampling is None:
            object.__setattr__(self, "draft_sampling", self.sampling)
        object.__setattr__(self, "draft_length", whole_number("draft_length", self.draft_length))
        if not 0 <= self.draft_length <= MAX_DRAFT_LENGTH:
            raise ValueError(f"draft_length: expected 0 to {MAX_DRAFT_LENGTH} tokens a round, got {self.draft_length}")
        for name in ("sampling", "draft_sampling"):
            if not isinstance(value := getattr(self, name), Sampling):
                raise ValueError(f"{name}: expected decoding.Sampling(temperature, top_k, top_p), got {value!r:.80}")
        object.__setattr__(self, "eos_ids", token_ids("eos_ids", self.eos_ids))
        if not callable(self.acceptance) and self.acceptance not in ACCEPTANCE_METHODS:
            raise ValueError(
                f"acceptance: expected {', '.join(map(repr, ACCEPTANCE_METHODS))} or a function like stages.accept.decide, "
                f"got {self.acceptance!r:.80}"
            )
        object.__setattr__(self, "processors", as_processors(self.processors))

    @property
    def drafts_greedily(self) -> bool:
        return self.draft_sampling is not None and self.draft_sampling.is_greedy

    def tree_flatten(self) -> tuple[tuple, tuple]:
        arguments = self.sampling, self.draft_sampling, padded_ids(self.eos_ids, least=8), self.processors
        return arguments, tuple(getattr(self, name) for name in STATIC)

    @classmethod
    def tree_unflatten(cls, static: tuple, arguments: tuple) -> "Options":
        """Without validation: in compiled code the numbers are not known."""
        options = object.__new__(cls)
        for name, value in zip((*ARGUMENTS, *STATIC), (*arguments, *static), strict=True):
            object.__setattr__(options, name, value)
        return options


ARGUMENTS = ("sampling", "draft_sampling", "eos_ids", "processors")
STATIC = ("draft_length", "acceptance", "logprobs", "kernels")


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Errors: ValueError unless `value` is a whole number, of at least `least` if that is given."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {value!r:.80}") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number
