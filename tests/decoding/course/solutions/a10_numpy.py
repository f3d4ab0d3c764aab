"""Right, row by row."""

import numpy as np


def with_next_token(draft_tokens, num_accepted, next_token):
    rows = []
    for drafts, n, token in zip(draft_tokens, num_accepted, next_token, strict=True):
        run = [*drafts[:n].tolist(), int(token)]
        rows.append(run + [-1] * (len(drafts) + 1 - len(run)))
    return rows


def count_emitted(tokens, num_tokens, room, done, eos_ids):
    counts, ended = [], []
    for run, n, left, was_done in zip(tokens, num_tokens, room, done, strict=True):
        count, is_done = 0, bool(was_done)
        for token in run[:n]:
            if is_done:
                break
            count += 1
            is_done = int(token) in set(np.asarray(eos_ids).tolist()) or count == left
        counts.append(count)
        ended.append(is_done)
    return np.array(counts), np.array(ended)


def committed_length(length_before, num_written, num_emitted):
    return length_before + num_written - (num_written - num_emitted)


def next_start(tokens, hidden, num_emitted, token_before, hidden_before):
    token, state = token_before.copy(), hidden_before.copy()
    for row, count in enumerate(num_emitted):
        if count:
            token[row], state[row] = tokens[row, count - 1], hidden[row, count - 1]
    return token, state
