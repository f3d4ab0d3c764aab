"""Wrong answers to the exercises of `08_when_is_it_faster`."""


def always_four(accepted, step, draft_step, passes):
    return 4


def the_longest(accepted, step, draft_step, passes):
    return len(accepted)


def most_tokens_per_draft(accepted, step, draft_step, passes):
    """Forgets what the pass costs."""
    return max(range(1, len(accepted) + 1), key=lambda gamma: (1 + sum(accepted[:gamma])) / (gamma * draft_step))


WRONG = {
    1: [(1.85, 2.24), (1.46, 1.68), (None, 1.46)],
    2: [(always_four,), (the_longest,), (most_tokens_per_draft,)],
    3: [(64,), (100,), (2**14,)],
}
