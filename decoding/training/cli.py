"""`gemma4-mtp train` and `train-drafter`: arguments and help.  What a user can get wrong is found before the first step."""

import argparse
import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

import drafter
import gemma4
from decoding.cli.console import print_rows
from decoding.load import load_target
from decoding.options import MAX_DRAFT_LENGTH, whole_number
from decoding.training import acceptance, curves
from decoding.training.acceptance import DRAFT_LENGTH, held_out_prompts, live
from decoding.training.export import check_replaceable, export, training_log
from decoding.training.pair import (
    PROMPT,
    begin,
    bits_per_byte,
    check_text,
    corpus_tokenizer,
    train_drafter,
    train_target,
    training_stream,
)
from decoding.training.recipes import SIZES, Recipe, for_target, split_steps
from decoding.training.text import Corpus, encode, eos_of, read_corpus
from drafter import Drafter
from gemma4 import Gemma4
from gemma4.checkpoints.hub import local_directory
from gemma4.progress import progress

MOST_PROMPTS = 64  # of those that measure the acceptance
POINTS = 8  # of a curve, at least
RESULT = """\
DIR/pair holds the result in Hugging Face layout, quality.json (bits per byte, acceptance) and the training log; DIR also
the checkpoints, and curves.png if matplotlib is installed.  The same command resumes after an interruption, at the last
checkpoint.  A tenth of the text is held out to measure with."""

TRAIN = f"""\
Train a small pair from nothing on your own text: a tokenizer, a target, and a drafter for it.

{RESULT}"""
TRAIN_EXAMPLES = """\
examples:
  gemma4-mtp train --text book.txt --out mine --size tiny      about a minute, to see all stages
  gemma4-mtp train --text books/*.txt --out mine               the size of the shipped pair: hours on a laptop
  gemma4-mtp generate "Once" --target mine/pair/target --drafter mine/pair/drafter
"""
TRAIN_DRAFTER = f"""\
Train a drafter for a target that stays as it is: on your text, and on text that the target writes itself.

{RESULT}
Each step computes the target's distribution over the whole vocabulary at each of its tokens: for a vocabulary of 262,144 in
float32 that is 1 MB a token, so give a small --batch."""
TRAIN_DRAFTER_EXAMPLES = """\
examples:
  gemma4-mtp train-drafter DIR --text book.txt --out mine
  gemma4-mtp generate "Once" --target DIR --drafter mine/pair/drafter
"""


class Training(NamedTuple):
    """All that the stages need, validated."""

    recipe: Recipe
    corpus: Corpus
    tokenizer: Tokenizer
    out: Path
    target: Gemma4 | None = None  # None: it is trained, too
    quiet: bool = False


def add_command(commands: argparse._SubParsersAction, layout: Any, name: str, help: str) -> None:
    has_target = name == "train-drafter"
    command = commands.add_parser(
        name,
        help=help,
        description=TRAIN_DRAFTER if has_target else TRAIN,
        epilog=TRAIN_DRAFTER_EXAMPLES if has_target else TRAIN_EXAMPLES,
        formatter_class=layout,
        allow_abbrev=False,
    )
    option, number = command.add_argument, functools.partial(command.add_argument, metavar="N", type=int)
    if has_target:
        option("target", metavar="TARGET", help="directory of the target, or its name on the Hugging Face hub")
    option("--text", metavar="FILE", nargs="+", required=True, help="text files in UTF-8")
    option("--out", metavar="DIR", type=Path, required=True, help="directory for checkpoints, logs and the result")
    if has_target:
        number("--steps", default=850, help="training steps (850)")
        number("--width", help="hidden size of the drafter (256, or half of the target's if that is less)")
        number("--layers", default=4, help="layers of the drafter, the last one with full attention (4)")
        option(
            "--clusters",
            metavar="N,K",
            help="clusters of the vocabulary, and how many of them are scored; 0: a dense head (one for each 128 tokens of a "
            "large vocabulary, or 32 of a small one)",
        )
        option("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the target's weights (float32)")
    else:
        option("--size", choices=SIZES, default="small", help="small: the shipped pair's, 13 M parameters (small)")
        number("--steps", help="training steps of the target (small 600, tiny 60)")
        number("--drafter-steps", help="and of the drafter (small 850, tiny 40)")
    sizes = "" if has_target else ", tiny %s"
    number("--window", help=f"tokens of text in a training window (256{sizes and sizes % 64})")
    number("--batch", help=f"tokens in one step ({'2048' if has_target else '4096, of the drafter 2048, tiny 512'})")
    number(
        "--samples", help=f"windows of text that the target writes, greedy and sampled each (512{sizes and sizes % 8})"
    )
    number("--draft-length", help=f"drafts that the drafter learns in a row (4{sizes and sizes % 2})")
    number("--seed", default=0, help="of all random numbers (0)")
    option("--quiet", action="store_true", help="print nothing but errors")


def prepare(args: argparse.Namespace) -> Training:
    """Validate, read the text, and load the target if there is one.  Errors: ValueError or OSError for a user's mistake."""
    corpus = read_corpus(args.text)
    if args.command == "train":
        recipe, target, tokenizer = _changed(_of_size(args), args), None, None
    else:
        target, tokenizer = load_target(args.target, args.dtype)
        if tokenizer is None:
            raise ValueError(f"{args.target}: no tokenizer.json, so the text cannot be read; fetch the file too")
        recipe = _changed(_of_target(args, target), args)
    _check(recipe)
    check_replaceable(args.out)
    settings = {**recipe.as_dict(), "text": _digest(corpus)}
    if target is not None:
        settings |= {"target": _files(local_directory(args.target)), "dtype": args.dtype}
    begin(args.out, settings)
    if tokenizer is None:
        tokenizer = corpus_tokenizer(corpus, recipe.target.vocab_size, args.out)
    check_text(recipe, training_stream(recipe, tokenizer, corpus))
    return Training(recipe, corpus, tokenizer, args.out, target, args.quiet)


def _of_size(args: argparse.Namespace) -> Recipe:
    recipe: Recipe = SIZES[args.size]()
    if args.steps is not None:
        recipe = recipe._replace(target_steps=whole_number("--steps", args.steps, least=1))
    if args.drafter_steps is not None:
        recipe = recipe._replace(
            drafter_steps=split_steps(whole_number("--drafter-steps", args.drafter_steps, least=2))
        )
    return recipe


def _of_target(args: argparse.Namespace, target: Gemma4) -> Recipe:
    width = min(256, target.config.hidden_size // 2) if args.width is None else args.width
    whole_number("--width", width, least=1)
    whole_number("--layers", args.layers, least=1)
    clusters = _clusters(args.clusters, target.config.vocab_size)
    recipe = for_target(target.config, width=width, clusters=clusters, layers=args.layers)
    return recipe._replace(drafter_steps=split_steps(whole_number("--steps", args.steps, least=2)))


def _clusters(given: str | None, vocab_size: int) -> tuple[int, int] | None:
    if given is None:
        count = vocab_size // (128 if vocab_size >= 2**16 else 32)
        return None if not count or vocab_size % count else (count, min(32, -(-count // 4)))
    if given == "0":
        return None
    parts = given.split(",")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 9 for part in parts):
        raise ValueError(f"--clusters: expected two numbers such as 64,16, or 0, got {given!r:.40}")
    count, scored = map(int, parts)
    if not count or vocab_size % count or not 0 < scored <= count:
        raise ValueError(
            f"--clusters: expected a divisor of the {vocab_size} tokens, and a number from 1 up to it, got {given!r:.40}"
        )
    return count, scored


def _changed(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """With the options that both commands have."""
    given = {"window": args.window, "sampled_rows": args.samples, "unroll": args.draft_length}
    given |= {"target_batch": args.batch, "drafter_batch": args.batch, "seed": args.seed}
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    shortest = (
        min(sum(recipe.drafter_steps), recipe.target_steps) if args.command == "train" else sum(recipe.drafter_steps)
    )
    return recipe._replace(log_every=min(recipe.log_every, max(1, shortest // POINTS)))


def _check(recipe: Recipe) -> None:
    whole_number("--window", recipe.window, least=PROMPT + 1)
    whole_number("--samples", recipe.sampled_rows, least=1)
    whole_number("--seed", recipe.seed, least=0)
    if not 1 <= recipe.unroll <= min(MAX_DRAFT_LENGTH, recipe.window - 1):
        raise ValueError(f"--draft-length: expected 1 to {MAX_DRAFT_LENGTH}, got {recipe.unroll}")
    if min(recipe.target_batch, recipe.drafter_batch) < 2 * recipe.window:
        raise ValueError(
            f"--batch: expected at least {2 * recipe.window} tokens, two windows, got "
            f"{min(recipe.target_batch, recipe.drafter_batch)}"
        )
    context, measured = recipe.target.max_position_embeddings, acceptance.PROMPT_TOKENS + acceptance.NEW_TOKENS
    if context < 2 * recipe.window:
        raise ValueError(
            f"--window: texts of up to {2 * recipe.window} tokens do not fit the target's context of {context}"
        )
    if context < measured:
        raise ValueError(
            f"the target has a context of {context}: expected at least {measured}, to measure acceptance with"
        )


def _digest(corpus: Corpus) -> str:
    return hashlib.sha256(json.dumps(corpus).encode()).hexdigest()


def _files(directory: Path) -> dict[str, int]:
    """The target's files and their sizes, which tell whether a training resumes with the target that it began with."""
    return {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()}


def run(training: Training) -> None:
    """All stages, the measurement, the export.  Errors: FloatingPointError if training diverges."""
    recipe, corpus, tokenizer, out, target, quiet = training
    say = (lambda *what: None) if quiet else functools.partial(print, flush=True)
    report = lambda entry: say(described(entry))
    stream = training_stream(recipe, tokenizer, corpus)
    held_out = np.concatenate(encode(tokenizer, corpus.held_out, eos_of(recipe.target)))
    is_whole_pair = target is None
    if target is None:
        target = train_target(recipe, tokenizer, corpus, out, report)
    draft_model = train_drafter(recipe, target, stream, out, held_out, report)
    with progress("measuring acceptance"):
        quality = measure(recipe, target, draft_model, tokenizer, corpus)
    write = functools.partial(write_result, training, target, draft_model, quality, is_whole_pair)
    pair = export(write, out)
    curves.draw(training_log(out), out / curves.PICTURE)
    if not quiet:
        standard_output: Any = sys.stdout
        say()
        print_rows(standard_output, rows(quality))
        say(f"\nin {pair}: {'target, drafter' if is_whole_pair else 'drafter'}, quality.json, training_log.jsonl")


def described(entry: dict[str, Any]) -> str:
    line = f"{entry['run']}: step {entry['step']}, loss {entry['loss']:.3f} nats, {entry['seconds']:.0f} s"
    if "held_out_bits_per_byte" in entry:
        line += f"; held out: {entry['held_out_bits_per_byte']:.3f} bits per byte"
    if "held_out_acceptance" in entry:
        line += f"; held out: accepted {_shares(entry['held_out_acceptance'])}"
    return line


def _shares(shares: Sequence[float]) -> str:
    return "  ".join(f"{position}: {share:.0%}" for position, share in enumerate(shares, start=1))


def measure(
    recipe: Recipe, target: Gemma4, draft_model: Drafter, tokenizer: Tokenizer, corpus: Corpus
) -> dict[str, Any]:
    """On held-out text: the target's bits per byte, and the live loop, greedy and at temperature 1."""
    documents = corpus.held_out[:: -(-len(corpus.held_out) // MOST_PROMPTS)]
    prompts = held_out_prompts(target, tokenizer, documents)
    return {
        "held_out_documents": len(documents),
        "bits_per_byte": bits_per_byte(target, tokenizer, documents, 2 * recipe.window),
        "greedy": live(target, draft_model, prompts, 0.0),
        "temperature_1": live(target, draft_model, prompts, 1.0),
    }


def rows(quality: dict[str, Any]) -> dict[str, str]:
    found = {"held out, bits per byte": f"{quality['bits_per_byte']:.3f}"}
    for name, label in (("greedy", "greedy"), ("temperature_1", "temperature 1")):
        stats = quality[name]
        found[f"tokens per round, {label}"] = f"{stats['tokens_per_round']:.2f} of at most {DRAFT_LENGTH + 1}"
        found[f"accepted, {label}"] = _shares(stats["acceptance_per_position"])
    return found


def write_result(
    training: Training, target: Gemma4, draft_model: Drafter, quality: dict[str, Any], is_whole_pair: bool, pair: Path
) -> None:
    """The models in Hugging Face layout, the tokenizer, the figures, the training log."""
    drafter.export_hf(draft_model, pair / "drafter")
    if is_whole_pair:
        gemma4.export_hf(target, pair / "target")
        training.tokenizer.save(str(pair / "target" / "tokenizer.json"))
    (pair / "quality.json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    (pair / "training_log.jsonl").write_text(training_log(training.out), encoding="utf-8")


def resume_hint(training: Training) -> str:
    return f"interrupted; the same command resumes in {shlex.quote(str(training.out))}"
