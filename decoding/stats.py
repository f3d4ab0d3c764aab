"""What happened in a generation, counted from its rounds."""

import dataclasses
import itertools

import numpy as np

from decoding.state import Round


@dataclasses.dataclass
class Stats:
    """Counts over all rows and rounds.  A row takes part in a round if it emitted something in it.

    Only what was emitted counts: drafts that were accepted beyond an EOS or the budget are left out of `accepted`, so that
    emitted == accepted + tokens of the target's own, to the token.
    """

    rounds: int = 0  # verify steps, summed over rows
    drafted: int = 0  # tokens proposed
    accepted: int = 0  # of them emitted
    emitted: int = 0  # tokens of text in all, the prefill's token included
    prompts: int = 0  # rows; the first token of each comes from the prefill, outside any round
    reached: list[int] = dataclasses.field(default_factory=list)  # per draft position: rounds in which it was accepted
    tried: list[int] = dataclasses.field(default_factory=list)  # ... in which it was drafted: fewer, if lengths change

    def add_prefill(self, last: Round) -> None:
        self.prompts += len(last.num_emitted)
        self.emitted += int(last.num_emitted.sum())

    def add_round(self, last: Round) -> None:
        took_part = last.num_emitted > 0
        gamma = last.draft_tokens.shape[1]
        accepted = np.minimum(last.num_accepted, last.num_emitted)[took_part]
        self.rounds += int(took_part.sum())
        self.drafted += gamma * int(took_part.sum())
        self.accepted += int(accepted.sum())
        self.emitted += int(last.num_emitted.sum())
        self.reached = _sum(self.reached, (accepted[:, None] > np.arange(gamma)).sum(axis=0).tolist())
        self.tried = _sum(self.tried, [int(took_part.sum())] * gamma)

    @property
    def tokens_per_round(self) -> float:
        """Tokens that one verify step yields, the target's own included: 1 .. gamma + 1."""
        return (self.emitted - self.prompts) / self.rounds if self.rounds else 0.0

    @property
    def acceptance_per_position(self) -> list[float]:
        """Acceptance rate of draft 1, 2, .. gamma: the share of rounds in which it and all drafts before it were accepted,
        of those that drafted so many.
        """
        return [count / tried if tried else 0.0 for count, tried in zip(self.reached, self.tried, strict=True)]

    def as_dict(self) -> dict:
        return {
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "emitted": self.emitted,
            "tokens_per_round": round(self.tokens_per_round, 4),
            "acceptance_per_position": [round(share, 4) for share in self.acceptance_per_position],
        }


def _sum(total: list[int], counts: list[int]) -> list[int]:
    """Position by position, where one list may be longer."""
    return [a + b for a, b in itertools.zip_longest(total, counts, fillvalue=0)]
