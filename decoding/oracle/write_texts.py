"""Write `texts.json`: the greedy text that the target of each layout writes after the prompts of the round stage."""

import json

import decoding
from decoding.oracle.cases import CASES, TEXTS, round_prompts
from decoding.oracle.tiny import TINY

LENGTH = 28


def texts() -> dict[str, list[list[int]]]:
    """One text for each prompt of the round stage, by the autoregressive loop of the reference."""
    out = {}
    for layout in TINY:
        case = CASES[layout]
        prompts = [row[:length].tolist() for row, length in zip(*round_prompts(case.rng("rounds")), strict=True)]
        texts = decoding.generate_autoregressive(case.target(), prompts, max_new_tokens=LENGTH, loop="plain").tokens
        out[layout] = [text.tolist() for text in texts]
    return out


if __name__ == "__main__":
    lines = [f'  "{layout}": {json.dumps(rows)}' for layout, rows in texts().items()]
    TEXTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
