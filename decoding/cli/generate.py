"""What the command does once its arguments are read: check and load everything, then generate, show and measure."""

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
from tokenizers import Tokenizer

from decoding.bench.generate_timing import Figures, compare, time_stages
from decoding.cli.main.console import Printer, print_baseline, print_table, use_color
from decoding.generation import Generation, OnRound, generate, generate_autoregressive
from decoding.load import load_pair, load_target
from decoding.options import Options
from decoding.prompts import check_draft_length, check_max_new_tokens, validate_prompts
from decoding.sampling import Sampling
from decoding.state import Round
from drafter import Drafter
from gemma4 import Gemma4
from gemma4.chat import chat

CHATS = {"plain": {}, "empty-thought": {"empty_thought": True}, "thinking": {"thinking": True}}


class UserError(ValueError):
    """What the user should do differently; shown as one line."""


class Job(NamedTuple):
    """All that a run needs, checked."""

    target: Gemma4
    draft_model: Drafter | None  # None: the baseline
    tokenizer: Tokenizer | None
    prompt: list[int]
    prompt_text: str
    max_new_tokens: int
    options: Options
    seed: int

    def speculative(self, on_round: OnRound) -> Generation:
        how = {name: getattr(self.options, name) for name in ("draft_length", "draft_sampling", "acceptance")}
        return generate(self.target, self.draft_model, self.prompt, **how, **self._common(), on_round=on_round)

    def autoregressive(self, on_round: OnRound) -> Generation:
        return generate_autoregressive(self.target, self.prompt, **self._common(), on_round=on_round)

    def measure(self) -> Figures:
        if self.draft_model is None:
            return Figures(*compare(self.autoregressive))
        stages = time_stages(self.target, self.draft_model, self.prompt, self.options, self.max_new_tokens)
        speculative, autoregressive = compare(self.speculative, self.autoregressive)
        return Figures(autoregressive, speculative, stages)

    def _common(self) -> dict:
        return {
            "max_new_tokens": self.max_new_tokens,
            "sampling": self.options.sampling,
            "key": jax.random.key(self.seed),
            "eos_ids": self.options.eos_ids,
        }


def prepare(args: argparse.Namespace) -> Job:
    """Errors: ValueError or OSError for every mistake that a user can make."""
    sampling = Sampling(args.temperature, args.top_k, args.top_p).check()
    check_draft_length(args.draft_length)
    check_max_new_tokens(args.max_new_tokens)
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed: expected a number in 0..{2**32 - 1}, got {args.seed}")
    if (args.text is None) == (args.prompt_ids is None):
        got = "neither" if args.text is None else "both"
        raise UserError(f"expected a prompt, either TEXT or --prompt-ids, got {got}")
    if args.drafter and not args.target:
        raise UserError("--drafter needs --target: name both directories, or neither for the shipped pair")
    if args.chat and args.prompt_ids is not None:
        raise UserError("--chat: expected TEXT, what a user says, got --prompt-ids")
    if args.target and not args.drafter and not args.baseline:
        raise UserError("--target needs --drafter: name both directories, or add --baseline to run the target alone")
    prompt = None if args.prompt_ids is None else _parse_ids(args.prompt_ids)
    if args.text == "":
        raise UserError("the prompt is empty: expected a text of at least one character")
    if any("\ud800" <= character <= "\udfff" for character in args.text or ""):  # how Python passes on other bytes
        raise UserError("TEXT: expected UTF-8, got bytes that are not; set the terminal to UTF-8")

    if args.baseline:
        (target, tokenizer), draft_model = load_target(args.target, args.dtype), None
    else:
        target, draft_model, tokenizer = load_pair(args.target, args.drafter, args.dtype, convention=args.convention)
    if prompt is None:
        if tokenizer is None:
            raise UserError(f"{args.target}: no tokenizer.json, so TEXT cannot be read; give --prompt-ids")
        prompt = _encoded(args, target, tokenizer)
    validate_prompts(target, prompt, args.max_new_tokens)
    text = args.text or (tokenizer.decode(prompt) if tokenizer else " ".join(map(str, prompt)) + " ")
    options = Options(args.draft_length, sampling, sampling, target.config.eos_token_ids, args.acceptance)
    return Job(target, draft_model, tokenizer, prompt, text, args.max_new_tokens, options, args.seed)


def _encoded(args: argparse.Namespace, target: Gemma4, tokenizer: Tokenizer) -> list[int]:
    if args.chat is None:
        bos = target.config.bos_token_id
        return [bos] * (bos is not None) + tokenizer.encode(args.text, add_special_tokens=False).ids
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


def run(job: Job, args: argparse.Namespace, began: float) -> None:
    """Show the text as it comes, then what was measured; or one JSON object after all of it.

    began: when the command started, by `time.perf_counter`.
    """
    out, color = sys.stdout, use_color(sys.stdout) and not args.no_color
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character must not end the run
    printer = Printer(out, job.tokenizer, color=color, show_rejected=args.show_rejected, is_baseline=args.baseline)
    waiting = contextlib.ExitStack()
    first_token_seconds = None

    def on_round(last: Round) -> None:
        nonlocal first_token_seconds
        if first_token_seconds is None:
            first_token_seconds = time.perf_counter() - began
            waiting.close()
            if not args.json:
                printer.prompt(job.prompt_text)
        if not args.json:
            printer.round(last)

    with waiting:
        waiting.enter_context(notice("compiling (a later start is quicker)"))
        generation = job.autoregressive(on_round) if args.baseline else job.speculative(on_round)
    if not args.json:
        printer.end()
    with notice("measuring"):
        figures = job.measure()

    if args.json:
        tokens = generation.tokens[0].tolist()
        text = job.tokenizer.decode(tokens) if job.tokenizer else None
        timings = {"first_token_seconds": first_token_seconds, **figures.as_dict()}
        print(json.dumps({"tokens": tokens, "text": text, "stats": generation.stats.as_dict(), "timings": timings}))
    elif args.baseline:
        print_baseline(out, generation.stats, figures, color=color)
    else:
        out.write(f"\n{printer.legend()}\n")
        print_table(out, generation.stats, job.options.draft_length, figures, color=color)
    out.flush()


@contextlib.contextmanager
def notice(what: str) -> Iterator[None]:
    """Says what takes its time while nothing is printed; on standard error, and only if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
