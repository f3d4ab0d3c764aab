"""Writes `texts.json`: what the target of each layout writes after the prompts of the round stage, greedily."""

import json

import decoding
from decoding.oracle.cases import CASES, TEXTS, round_prompts
from decoding.oracle.tiny import TINY

LENGTH = 28


def texts() -> dict[str, list[list[int]]]:
    """One text a row of the round stage's prompts, by the autoregressive loop."""
    out = {}
    for layout in TINY:
        case = CASES[layout]
        rows = zip(*round_prompts(case.rng("rounds")), strict=True)
        prompts = [row[:length].tolist() for row, length in rows]
        out[layout] = [
            text.tolist()
            for text in decoding.generate_autoregressive(case.target(), prompts, max_new_tokens=LENGTH).tokens
        ]
    return out


if __name__ == "__main__":
    lines = [f'  "{layout}": {json.dumps(rows)}' for layout, rows in texts().items()]
    TEXTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
