"""How many tokens to draft next: the draft length that yields the most tokens a second, by what rounds have shown so far.

    tokens per second of length n  =  (1 + a1 + a1 a2 + ... + a1 ... an) / seconds of a round of length n

a_i is the share of rounds in which draft i was accepted, among those that accepted all before it.  Length 0 is a step without
the drafter, so that a bad drafter costs little.  Seconds are measured while text is generated, for a few lengths, each with a
program of its own; between them they lie nearly on a line.

The choice depends on rounds that have ended and never on numbers yet to be drawn, so the text keeps the target's distribution.
"""

from collections import deque
from collections.abc import Sequence

AUTO = "auto"
LENGTHS = (0, 1, 2, 3, 4, 6, 8)
FIRST_TRIES = (4, 8, 1, 0)  # which have their seconds measured first
FIRST_GUESS = 0.7  # of a1; a later a_i is guessed to be like the one before
GUESS_WEIGHT = 2.0  # how many rounds a guess counts for
FORGET = 0.995  # of what was seen, with each round: texts change
PROBE_EVERY = 64  # rounds, after which a neighbouring length is tried for one round more


class DraftLengths:
    """What is known of one pair on one machine.  Give the same object to several generations, and they begin with it.

    seconds:  by length, of recent rounds.
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS):
        self.lengths = tuple(sorted(set(lengths) | {0}))
        self.longest = max(self.lengths)
        self.seconds: dict[int, deque[float]] = {}
        self._accepted, self._reached = [0.0] * self.longest, [0.0] * self.longest
        # Twice each: while one that is new is compiled, the time of the call before it is lost.
        self._tries = [length for length in FIRST_TRIES if length in self.lengths for _ in range(2)]
        self._rounds_since_probe = 0

    def saw(self, length: int, num_accepted: Sequence[int]) -> None:
        """A round of `length` ended; how many drafts each row accepted that took part in it."""
        self._rounds_since_probe += 1
        if not length:
            return
        for i in range(self.longest):
            self._accepted[i] *= FORGET
            self._reached[i] *= FORGET
        for accepted in num_accepted:
            for i in range(min(accepted + 1, length)):
                self._reached[i] += 1
                self._accepted[i] += i < accepted

    def took(self, length: int, seconds: float) -> None:
        """A round of `length` took so long."""
        self.seconds.setdefault(length, deque(maxlen=9)).append(seconds)

    def choose(self) -> tuple[int, int | None]:
        """The next length, and for how many rounds, where it is only a try."""
        if self._tries:
            return self._tries.pop(0), 1
        best = self.best()
        if self._rounds_since_probe < PROBE_EVERY:
            return best, None
        self._rounds_since_probe = 0
        place = self.lengths.index(best)
        near = [self.lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(self.lengths)]
        # The one that promises more.  Without drafts nothing is learnt of the drafter, so length 0 probes length 1.
        return max(near, key=self.tokens_per_second), 1

    def best(self) -> int:
        return max(self.lengths, key=self.tokens_per_second)

    def tokens_per_second(self, length: int) -> float:
        """Of one row, as expected."""
        return self.tokens_per_round(length) / self.seconds_of(length)

    def tokens_per_round(self, length: int) -> float:
        tokens = all_accepted = 1.0
        guess = FIRST_GUESS
        for i in range(length):
            guess = (self._accepted[i] + GUESS_WEIGHT * guess) / (self._reached[i] + GUESS_WEIGHT)
            all_accepted *= guess
            tokens += all_accepted
        return tokens

    def seconds_of(self, length: int) -> float:
        """The quickest of recent rounds, since whatever disturbs one makes it slower.

        Where a length was not measured, on the line between its nearest neighbours; infinite if these are unknown.
        """
        known = {of: min(values) for of, values in self.seconds.items()}
        if length in known or not length:
            return known.get(length, float("inf"))
        below = max((of for of in known if 0 < of < length), default=None)
        above = min((of for of in known if of > length), default=None)
        if below is None or above is None:
            return float("inf")
        share = (length - below) / (above - below)
        return known[below] + share * (known[above] - known[below])
