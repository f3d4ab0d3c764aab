"""Answers to the exercises of `08_when_is_it_faster`.

8.1: the small drafter yields 1 + 0.7 + 0.7² + 0.7³ + 0.7⁴ = 2.77 tokens in 1.9 steps, the large one 3.36 in 2.3: a gain of
1.46 each, so it does not pay.  8.3: one reading of the weights serves more rows, so that arithmetic takes longer than reading;
then γ + 1 tokens cost γ + 1 times as much as one.
"""

from exercises.when_is_it_faster import ACCELERATOR, check_1, check_2, check_3, gain


def best_draft_length(accepted, step, draft_step, passes):
    def speed_up(gamma):
        return (1 + sum(accepted[:gamma])) * step / (gamma * draft_step + passes[gamma + 1])

    return max(range(1, len(accepted) + 1), key=speed_up)


batch = 1
while gain("E2B", batch, 8, 0.8, ACCELERATOR) >= 1:
    batch *= 2

assert check_1(1.46, 1.46)
assert check_2(best_draft_length)
assert check_3(batch)
