"""Right, by writing every token one by one."""

import numpy as np


def slot_positions(last, capacity):
    held = np.empty((len(last), capacity), np.int64)
    for row, newest in enumerate(last):
        held[row] = np.arange(capacity) - capacity
        for position in range(newest + 1):
            held[row, position % capacity] = position
    return held


def write(buffer, new, start):
    buffer = buffer.copy()
    for row in range(len(start)):
        for step in range(new.shape[1]):
            buffer[row, :, (start[row] + step) % buffer.shape[2]] = new[row, step]
    return buffer
