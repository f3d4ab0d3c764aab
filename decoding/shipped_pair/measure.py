"""Measure a pair on held-out text:  python -m decoding.shipped_pair.measure [DIR]   (the shipped pair unless DIR is given)

Prints the figures that the README has for the pair's quality: bits per byte, tokens per verify step in the live loop, and the
clustered head beside the dense one.  `gemma4-mtp bench` measures speed.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from flax import nnx

from decoding.load import SHIPPED, load_pair
from decoding.training.acceptance import held_out_prompts, live
from decoding.training.pair import bits_per_byte
from drafter import Drafter
from gemma4.checkpoints.params import named_params, with_params


def with_dense_head(draft_model: Drafter) -> Drafter:
    """The same weights with a head that scores every token."""
    config = dataclasses.replace(draft_model.config, use_ordered_embeddings=False)
    return with_params(nnx.eval_shape(lambda: Drafter(config, rngs=nnx.Rngs(0))), named_params(draft_model))


def measure(directory: Path) -> dict:
    target, draft_model, tokenizer = load_pair(directory / "target", directory / "drafter")
    if tokenizer is None:
        raise SystemExit(f"{directory / 'target'}: has no tokenizer.json; a pair that the recipe made has one")
    chapters = json.loads((directory / "held_out.json").read_text(encoding="utf-8"))
    prompts = held_out_prompts(target, tokenizer, chapters)
    size = sum(file.stat().st_size for name in ("target", "drafter") for file in (directory / name).iterdir())
    dense = with_dense_head(draft_model)
    return {
        "megabytes": round(size / 1e6, 2),
        "parameters": {
            name: sum(value.size for value in named_params(model).values())
            for name, model in (("target", target), ("drafter", draft_model))
        },
        "held_out_chapters": len(chapters),
        "bits_per_byte": bits_per_byte(target, tokenizer, chapters, 512),
        "greedy": live(target, draft_model, prompts, 0.0),
        "temperature_1": live(target, draft_model, prompts, 1.0),
        "temperature_1_by_block": live(target, draft_model, prompts, 1.0, "block"),
        "greedy_dense_head": live(target, dense, prompts, 0.0),
        "temperature_1_dense_head": live(target, dense, prompts, 1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m decoding.shipped_pair.measure",
        description="Measure a pair on held-out text, the shipped pair unless a folder is given.",
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", default=SHIPPED, help="folder with target/, drafter/, held_out.json"
    )
    print(json.dumps(measure(parser.parse_args().directory), indent=2))


if __name__ == "__main__":
    main()
