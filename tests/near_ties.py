"""Compare greedy texts that were computed in two ways.  They may differ where the two best logits nearly tie, nowhere else.

float32 sums differ by a few units in the last place when a batch or a chunk has another shape.  Where two logits are that
close, rounding decides which is larger.  Each such difference is counted; pytest prints the counts at its end.
"""

from collections.abc import Sequence

import numpy as np

import gemma4

TIE = 1e-4


class NearTies:
    def __init__(self):
        self.texts = self.excused = 0

    def compare(self, target: gemma4.Gemma4, prompt: Sequence[int], text, reference, what: str = "") -> None:
        """Fail unless the texts are equal, or first differ at a token whose two best logits are within TIE (counted)."""
        self.texts += 1
        text, reference = list(map(int, text)), list(map(int, reference))
        if text == reference:
            return
        pairs = zip(text, reference, strict=False)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        assert first is not None, f"{what}: {len(text)} tokens, {len(reference)} expected; equal up to the shorter end"
        read = np.array([[*prompt, *reference[:first]]])
        logits = np.asarray(gemma4.forward(target, read).logits[0, -1])
        second, best = np.argsort(logits)[-2:]
        gap = logits[best] - logits[second]
        assert {text[first], reference[first]} == {best, second} and gap <= TIE, (
            f"{what}: token {first} is {text[first]}, expected {reference[first]} of {reference}; "
            f"the best two are {best} and {second}, {gap:.2e} apart"
        )
        self.excused += 1
        print(f"{what}: near-tie at token {first}, {gap:.1e}")
