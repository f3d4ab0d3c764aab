"""Wrong answers to the exercises of 04."""

CONSTANT = [0.8, 0.6, 0.5, 0.4]

WRONG = {
    1: [
        ("", ""),
        ("abcde", ""),
        ("", "abcde"),
        ("a", "bcde"),
        ("abd", "ce"),
        ("bce", "ad"),
        ("ad", "bc"),
        ("adb", "bce"),
    ],
    2: [
        (CONSTANT, None, None),
        (CONSTANT, CONSTANT, CONSTANT),
        (CONSTANT, [0.7, 0.6, 0.5, 0.4], [0.7, 0.5, 0.4, 0.2]),
        (CONSTANT, [0.8, 0.6, 0.5, 0.2], [0.8, 0.6, 0.5, 0.4]),
        (CONSTANT, [0.8, 0.6, 0.7, 0.4], [0.8, 0.5, 0.4, 0.2]),
        (CONSTANT, [0.8, 0.6], [0.8, 0.5]),
    ],
    3: [
        ([], []),
        (["embedding", "hidden state"], ["cache"]),
        (["hidden state"], ["embedding", "cache"]),
        (["cache"], ["embedding", "hidden state"]),
        (["embedding", "cache"], ["hidden state", "cache"]),
    ],
}
