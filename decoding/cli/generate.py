"""`gemma4-mtp generate`: validate and load everything, then generate and print.

It measures nothing unless `--timings` is given, and then only after the text is out.
"""

import argparse
import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from tokenizers import Tokenizer

from decoding.cli.console import Printer, print_baseline, print_counts, use_color
from decoding.generation import Generation, OnRound, generate, generate_autoregressive
from decoding.generation_config import FILE, load_sampling
from decoding.load import load_pair, load_target
from decoding.options import MAX_DRAFT_LENGTH, Options, whole_number
from decoding.prompts import validate_prompts
from decoding.sampling import Sampling
from decoding.state import Round
from drafter import Drafter
from gemma4 import Gemma4
from gemma4.chat import chat

SAMPLING_FLAGS = ("temperature", "top_k", "top_p")
CHATS = {"plain": {}, "empty-thought": {"empty_thought": True}, "thinking": {"thinking": True}}
NOT_MEASURED = dict.fromkeys(("speculative", "autoregressive", "speed_up", "stage_seconds"))  # in place of figures


class UserError(ValueError):
    """What the user should do differently; shown as one line."""


class Request(NamedTuple):
    """All that a generation needs, validated and loaded."""

    target: Gemma4
    draft_model: Drafter | None  # None: the baseline
    tokenizer: Tokenizer | None
    prompt: list[int]
    prompt_text: str
    max_new_tokens: int
    options: Options
    seed: int
    loop: str

    def speculative(self, on_round: OnRound) -> Generation:
        assert self.draft_model is not None, "the baseline has no drafter"
        how = {name: getattr(self.options, name) for name in ("draft_length", "draft_sampling", "acceptance")}
        return generate(self.target, self.draft_model, self.prompt, **how, **self._common(), on_round=on_round)

    def autoregressive(self, on_round: OnRound) -> Generation:
        return generate_autoregressive(self.target, self.prompt, **self._common(), on_round=on_round)

    def _common(self) -> dict:
        return {
            "max_new_tokens": self.max_new_tokens,
            "sampling": self.options.sampling,
            "key": jax.random.key(self.seed),
            "eos_ids": self.options.eos_ids,
            "loop": self.loop,
        }


def prepare(args: argparse.Namespace) -> Request:
    """Errors: ValueError or OSError for every mistake that a user can make."""
    options = _options(args, load_sampling(args.target) if args.target else Sampling())
    whole_number("--max-new-tokens", args.max_new_tokens, least=1)
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed: expected a number in 0..{2**32 - 1}, got {args.seed}")
    _check_sources(args)
    prompt = None if args.prompt_ids is None else _parse_ids(args.prompt_ids)

    if args.baseline:
        (target, tokenizer), draft_model = load_target(args.target, args.dtype), None
    else:
        target, draft_model, tokenizer = load_pair(args.target, args.drafter, args.dtype, convention=args.convention)
    if prompt is None:
        if tokenizer is None:
            raise UserError(f"{args.target}: no tokenizer.json, so TEXT cannot be read; give --prompt-ids")
        prompt = _encoded(args, target, tokenizer)
    validate_prompts(target.config, prompt, args.max_new_tokens)
    text = args.text or (tokenizer.decode(prompt) if tokenizer else " ".join(map(str, prompt)) + " ")
    options = dataclasses.replace(options, eos_ids=target.config.eos_token_ids)
    return Request(target, draft_model, tokenizer, prompt, text, args.max_new_tokens, options, args.seed, args.loop)


def _options(args: argparse.Namespace, recommended: Sampling) -> Options:
    """recommended: the checkpoint's settings, which apply where the command line has none."""
    if not 1 <= args.draft_length <= MAX_DRAFT_LENGTH:
        raise UserError(
            f"--draft-length: expected 1 to {MAX_DRAFT_LENGTH} tokens a round, got {args.draft_length}; "
            "to run without a drafter, give --baseline"
        )
    given = {name: value for name in SAMPLING_FLAGS if (value := getattr(args, name)) is not None}
    sampling = dataclasses.replace(recommended, **given)
    if sampling != Sampling(**given):
        print(f"gemma4-mtp: {FILE} applies: {described(sampling)}", file=sys.stderr)
    return Options(args.draft_length, sampling, acceptance=args.acceptance)


def described(sampling: Sampling) -> str:
    parts = ["greedy"] if sampling.is_greedy else [f"temperature {sampling.temperature:g}"]
    if not sampling.is_greedy:
        parts += [f"top-k {sampling.top_k}"] * sampling.has_top_k + [f"top-p {sampling.top_p:g}"] * sampling.has_top_p
    if sampling.suppress_tokens:
        parts.append(f"without the tokens {', '.join(map(str, sampling.suppress_tokens))}")
    return ", ".join(parts)


def _check_sources(args: argparse.Namespace) -> None:
    """Errors: UserError unless there is one prompt, and directories for both models or for neither."""
    if (args.text is None) == (args.prompt_ids is None):
        got = "neither" if args.text is None else "both"
        raise UserError(f"expected a prompt, either TEXT or --prompt-ids, got {got}")
    if args.drafter and not args.target:
        raise UserError("--drafter needs --target: name both directories, or neither for the shipped pair")
    if args.chat and args.prompt_ids is not None:
        raise UserError("--chat: expected TEXT, what a user says, got --prompt-ids")
    if args.target and not args.drafter and not args.baseline:
        raise UserError("--target needs --drafter: name both directories, or add --baseline to run the target alone")
    if args.text == "":
        raise UserError("the prompt is empty: expected a text of at least one character")
    if any("\ud800" <= character <= "\udfff" for character in args.text or ""):  # how Python passes on other bytes
        raise UserError("TEXT: expected UTF-8, got bytes that are not; set the terminal to UTF-8")


def _encoded(args: argparse.Namespace, target: Gemma4, tokenizer: Tokenizer) -> list[int]:
    if args.chat is None:
        bos = target.config.bos_token_id
        return ([] if bos is None else [bos]) + tokenizer.encode(args.text, add_special_tokens=False).ids
    try:
        return chat(tokenizer, [("user", args.text)], **CHATS[args.chat])
    except ValueError as error:
        raise UserError(f"--chat: {error}") from error


def _parse_ids(text: str) -> list[int]:
    items = text.replace(",", " ").split()
    if not items:
        raise UserError("--prompt-ids: the prompt is empty: expected at least one token id")
    if not all(re.fullmatch("-?[0-9]{1,11}", item) for item in items):
        raise UserError(f"--prompt-ids: expected token ids separated by commas, such as 2,17,94, got {text!r}")
    return list(map(int, items))


def run(request: Request, args: argparse.Namespace, began: float) -> None:
    """Print the text as it comes, the counts, and what was measured; or one JSON object after all of it.

    began: when the command started, by `time.perf_counter`.
    """
    out: Any = sys.stdout
    color = use_color(out) and not args.no_color
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character must not end the run
    printer = Printer(out, request.tokenizer, color=color, show_rejected=args.show_rejected, is_baseline=args.baseline)
    generation, first_token_seconds = _generate(request, args, printer, began)
    stats, figures = generation.stats, None
    if not args.json:
        if args.baseline:
            print_baseline(out, stats)
        else:
            out.write(f"\n{printer.legend()}\n")
            print_counts(out, stats, request.options.draft_length)
        out.flush()
    if args.timings:
        from decoding.cli import timings  # here, because all else needs nothing of `decoding.bench`

        with notice("measuring"):
            figures = timings.measure(request)
        if not args.json:
            timings.print_figures(out, figures, color=color)
    if args.json:
        tokens = generation.tokens[0].tolist()
        text = request.tokenizer.decode(tokens) if request.tokenizer else None
        seconds = {"first_token_seconds": first_token_seconds, **(figures.as_dict() if figures else NOT_MEASURED)}
        print(json.dumps({"tokens": tokens, "text": text, "stats": stats.as_dict(), "timings": seconds}), file=out)
    out.flush()


def _generate(
    request: Request, args: argparse.Namespace, printer: Printer, began: float
) -> tuple[Generation, float | None]:
    """Generate; unless --json is given, print each round as it ends.  Also returns when the first token came, after `began`."""
    waiting = contextlib.ExitStack()
    first_token_seconds = None

    def on_round(last: Round) -> None:
        nonlocal first_token_seconds
        if first_token_seconds is None:
            first_token_seconds = time.perf_counter() - began
            waiting.close()
            if not args.json:
                printer.prompt(request.prompt_text)
        if not args.json:
            printer.round(last)

    with waiting:
        waiting.enter_context(notice("compiling (later starts are quicker)"))
        generation = request.autoregressive(on_round) if args.baseline else request.speculative(on_round)
    if not args.json:
        printer.end()
    return generation, first_token_seconds


@contextlib.contextmanager
def notice(what: str) -> Iterator[None]:
    """Say what takes its time while nothing is printed; on standard error, and only if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
