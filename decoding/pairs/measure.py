"""Measure a pair on held-out text:  python -m decoding.pairs.measure [DIR]   (the shipped pair unless DIR is given)

Prints every figure that the README quotes for the pair: bits per byte, tokens per verify step of the live loop, clustered
against dense head, and the wall clock of both loops, interleaved in one run.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from tokenizers import Tokenizer

from decoding.generate import Generation, generate, generate_autoregressive
from decoding.pair import SHIPPED, load_pair
from decoding.pairs import corpus
from decoding.pairs.recipe import bits_per_byte
from decoding.sampling import Sampling
from drafter import Drafter
from gemma4 import Gemma4
from gemma4.storage import named_params, with_params

PROMPT_TOKENS, NEW_TOKENS, DRAFT_LENGTH = 48, 120, 4


def held_out_prompts(tokenizer: Tokenizer, chapters: list[str], length: int = PROMPT_TOKENS) -> list[list[int]]:
    """The first tokens of each chapter, BOS included."""
    return [[corpus.BOS, *encoding.ids[: length - 1]] for encoding in tokenizer.encode_batch(chapters)]


def with_dense_head(drafter: Drafter) -> Drafter:
    """The same weights, every token scored."""
    config = dataclasses.replace(drafter.config, use_ordered_embeddings=False)
    return with_params(nnx.eval_shape(lambda: Drafter(config, rngs=nnx.Rngs(0))), named_params(drafter))


def live(target: Gemma4, drafter: Drafter, prompts: list[list[int]], temperature: float) -> dict:
    """One live run of the speculative loop over all prompts at once, with exact acceptance."""
    run = generate(
        target,
        drafter,
        prompts,
        max_new_tokens=NEW_TOKENS,
        draft_length=DRAFT_LENGTH,
        sampling=Sampling(temperature),
        key=jax.random.key(0),
    )
    return run.stats.as_dict()


def wall_clock(
    target: Gemma4,
    drafter: Drafter,
    prompts: list[list[int]],
    temperature: float,
    repeats: int,
    draft_length: int = DRAFT_LENGTH,
    on_device: bool = False,
) -> dict:
    """Tokens per second of both decoders at batch 1, compiled beforehand, prompt by prompt in turn; the ratio is per pair."""
    settings = {"max_new_tokens": NEW_TOKENS, "sampling": Sampling(temperature), "key": jax.random.key(0)}
    settings["on_device"] = on_device
    loops = {
        "speculative": lambda prompt: generate(target, drafter, prompt, draft_length=draft_length, **settings),
        "autoregressive": lambda prompt: generate_autoregressive(target, prompt, **settings),
    }
    rates = {name: [] for name in loops}
    for loop in loops.values():
        loop(prompts[0])
    for prompt in prompts * repeats:
        for name, loop in loops.items():
            rates[name].append(_tokens_per_second(loop, prompt))
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    median = {f"{name}_tokens_per_second": round(statistics.median(rate), 1) for name, rate in rates.items()}
    quartiles = [round(q, 3) for q in statistics.quantiles(ratios, n=4)]
    return median | {"speed_up_quartiles": quartiles, "runs": len(ratios)}


def _tokens_per_second(loop: Callable[[list[int]], Generation], prompt: list[int]) -> float:
    started = time.perf_counter()
    return sum(map(len, loop(prompt).tokens)) / (time.perf_counter() - started)


def measure(directory: Path, clock_prompts: int = 8, repeats: int = 3) -> dict:
    target, drafter, tokenizer = load_pair(directory / "target", directory / "drafter")
    chapters = json.loads((directory / "held_out.json").read_text(encoding="utf-8"))
    prompts = held_out_prompts(tokenizer, chapters)
    size = sum(file.stat().st_size for name in ("target", "drafter") for file in (directory / name).iterdir())
    dense = with_dense_head(drafter)
    return {
        "megabytes": round(size / 1e6, 2),
        "parameters": {
            name: sum(value.size for value in named_params(model).values())
            for name, model in (("target", target), ("drafter", drafter))
        },
        "held_out_chapters": len(chapters),
        "bits_per_byte": bits_per_byte(target, tokenizer, chapters, 512),
        "greedy": live(target, drafter, prompts, 0.0),
        "temperature_1": live(target, drafter, prompts, 1.0),
        "greedy_dense_head": live(target, dense, prompts, 0.0),
        "temperature_1_dense_head": live(target, dense, prompts, 1.0),
        "wall_clock": {
            f"{loop}, temperature {temperature:g}, gamma {gamma}": wall_clock(
                target, drafter, prompts[:clock_prompts], temperature, repeats, gamma, on_device=loop == "on the device"
            )
            for loop in ("streaming", "on the device")
            for temperature, gamma in ((0.0, 4), (0.0, 5), (1.0, 3), (1.0, 4))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "directory", type=Path, nargs="?", default=SHIPPED, help="folder with target/, drafter/, held_out.json"
    )
    print(json.dumps(measure(parser.parse_args().directory), indent=2))


if __name__ == "__main__":
    main()
