"""The exercises' checks: one file for each tutorial, called like the tutorial without its number.

A check takes what the reader found, prints one sentence, and returns whether it is right.  The sentence says what to look at
again, and never gives the answer away.  The answers are in `tutorials/answers`.
"""


def say(exercise: str, is_right: bool, sentence: str) -> bool:
    """Print the verdict on an exercise such as "6.2"."""
    print(f"{exercise} {'right' if is_right else 'not yet'}: {sentence}")
    return is_right
