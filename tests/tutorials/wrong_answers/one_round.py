"""Wrong answers to tutorial 01."""

from exercises.one_round import GAMMAS, greedy_text, measured

WRONG = {
    1: [(2, 4), (3, 4), (2, 5), (None, None)],
    2: [
        (dict.fromkeys(GAMMAS, 1.0),),
        ({gamma: gamma + 1.0 for gamma in GAMMAS},),  # as if every draft were accepted
        ({gamma: measured(gamma) - 1 for gamma in GAMMAS},),  # without the target's own token
        ({1: 1.5},),
    ],
    3: [
        (None, None, None),
        (greedy_text()[:-1], 40, "b"),
        (greedy_text(), 47, "b"),  # as if the target never said " the"
        (greedy_text(), 16, "b"),
    ],
}
