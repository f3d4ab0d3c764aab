"""`gemma4-mtp generate`: validate and load everything, then generate and print.

It measures nothing unless `--timings` is given, and then only after the text is out.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from decoding.cli.console import Printer, harmless, print_baseline, print_counts, use_color
from decoding.cli.devices import mesh_of
from decoding.cli.processors import check_bias, processors_of
from decoding.draft_length import AUTO, DraftLengths
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
from gemma4.progress import progress

SAMPLING_FLAGS = ("temperature", "top_k", "top_p")
CHATS = {"plain": {}, "empty-thought": {"empty_thought": True}, "thinking": {"thinking": True}}
PROMPTS = {"text": "TEXT", "prompt_file": "--prompt-file", "prompt_ids": "--prompt-ids"}
STDIN = "-"  # as TEXT
MAX_PROMPT_BYTES = 16 << 20
MAX_PROMPTS = 256
NOT_MEASURED = dict.fromkeys(("speculative", "autoregressive", "speed_up", "stage_seconds"))  # in place of figures


class UserError(ValueError):
    """What the user should do differently; shown as one line."""


class Request(NamedTuple):
    """All that a generation needs, validated and loaded."""

    target: Gemma4
    draft_model: Drafter | None  # None: the baseline
    tokenizer: Tokenizer | None
    prompts: list[list[int]]
    prompt_texts: list[str]
    max_new_tokens: int
    options: Options
    seed: int
    loop: str
    stop_strings: tuple[str, ...] = ()
    lengths: DraftLengths | None = None  # which chooses the draft length

    @property
    def prompt(self) -> Any:
        """The only one, or the batch."""
        return self.prompts[0] if len(self.prompts) == 1 else self.prompts

    def speculative(self, on_round: OnRound) -> Generation:
        """Errors: NotFinite."""
        assert self.draft_model is not None, "the baseline has no drafter"
        how = {name: getattr(self.options, name) for name in ("draft_sampling", "acceptance")}
        how["draft_length"] = self.options.draft_length if self.lengths is None else self.lengths
        return generate(self.target, self.draft_model, self.prompt, **how, **self._common(), on_round=on_round)

    def autoregressive(self, on_round: OnRound) -> Generation:
        """Errors: NotFinite."""
        return generate_autoregressive(self.target, self.prompt, **self._common(), on_round=on_round)

    def _common(self) -> dict:
        """Of several prompts, number i draws from the key of seed + i: its text is what it would be alone with that seed."""
        keys = [jax.random.key((self.seed + i) % 2**32) for i in range(len(self.prompts))]
        common = {name: getattr(self.options, name) for name in ("sampling", "eos_ids", "processors", "logprobs")}
        common |= {"max_new_tokens": self.max_new_tokens, "loop": self.loop}
        common |= {"stop_strings": self.stop_strings, "tokenizer": self.tokenizer}
        return common | {"key": keys[0] if len(keys) == 1 else jnp.stack(keys)}


def prepare(args: argparse.Namespace) -> Request:
    """Errors: ValueError or OSError for every mistake that a user can make."""
    options = _options(args, load_sampling(args.target) if args.target else Sampling())
    whole_number("--max-new-tokens", args.max_new_tokens, least=1)
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed: expected a number in 0..{2**32 - 1}, got {args.seed}")
    _check_options(args)
    texts, prompts = ([], [_parse_ids(ids) for ids in args.prompt_ids]) if args.prompt_ids else (_texts(args), [])

    mesh = mesh_of(args.devices, args.target)
    if args.baseline:
        (target, tokenizer), draft_model = load_target(args.target, args.dtype, mesh), None
    else:
        directories = args.target, args.drafter
        target, draft_model, tokenizer = load_pair(*directories, args.dtype, mesh, convention=args.convention)
    if tokenizer is None and (texts or args.stop):
        what = "TEXT cannot be read; give --prompt-ids" if texts else "--stop cannot be found; leave it out"
        raise UserError(f"{args.target}: no tokenizer.json, so {what}")
    if tokenizer is not None and texts:
        prompts = [_encoded(text, args.chat, target, tokenizer) for text in texts]
    validate_prompts(target.config, prompts[0] if len(prompts) == 1 else prompts, args.max_new_tokens)
    check_bias(options.processors, target.config.vocab_size)
    for prompt in prompts[len(texts) :]:
        texts.append(tokenizer.decode(prompt) if tokenizer else " ".join(map(str, prompt)) + " ")
    options = dataclasses.replace(options, eos_ids=target.config.eos_token_ids)
    lengths = DraftLengths() if args.draft_length == AUTO else None
    return Request(
        target,
        draft_model,
        tokenizer,
        prompts,
        texts,
        args.max_new_tokens,
        options,
        args.seed,
        args.loop,
        tuple(args.stop),
        lengths,
    )


def _options(args: argparse.Namespace, recommended: Sampling) -> Options:
    """recommended: the checkpoint's settings, which apply where the command line has none."""
    length = DraftLengths().longest if args.draft_length == AUTO else args.draft_length
    if not 1 <= length <= MAX_DRAFT_LENGTH:
        raise UserError(
            f"--draft-length: expected 1 to {MAX_DRAFT_LENGTH} tokens a round, got {args.draft_length}; "
            "to run without a drafter, give --baseline"
        )
    given = {name: value for name in SAMPLING_FLAGS if (value := getattr(args, name)) is not None}
    sampling = dataclasses.replace(recommended, **given)
    if sampling != Sampling(**given) and not args.quiet:
        print(f"gemma4-mtp: {FILE} applies: {described(sampling)}", file=sys.stderr)
    processors = processors_of(args)
    return Options(length, sampling, acceptance=args.acceptance, processors=processors, logprobs=args.logprobs)


def described(sampling: Sampling) -> str:
    parts = ["greedy"] if sampling.is_greedy else [f"temperature {sampling.temperature:g}"]
    if not sampling.is_greedy:
        parts += [f"top-k {sampling.top_k}"] * sampling.has_top_k + [f"top-p {sampling.top_p:g}"] * sampling.has_top_p
    if sampling.suppress_tokens:
        parts.append(f"without the tokens {', '.join(map(str, sampling.suppress_tokens))}")
    return ", ".join(parts)


def _check_options(args: argparse.Namespace) -> None:
    """Errors: UserError unless there is one prompt, and directories for both models or for neither."""
    given = [name for name in PROMPTS if getattr(args, name)]
    if len(given) != 1:
        got = " and ".join(PROMPTS[name] for name in given) or "none of them"
        raise UserError(f"expected one prompt, or several of one kind, as {', '.join(PROMPTS.values())}; got {got}")
    if (count := len(getattr(args, given[0]))) > MAX_PROMPTS:
        raise UserError(f"{PROMPTS[given[0]]}: expected at most {MAX_PROMPTS} prompts at once, got {count}")
    if count > 1 and args.timings:
        raise UserError(f"--timings: expected one prompt, which is measured, got {count}")
    if count > 1 and STDIN in args.text:
        raise UserError(f"TEXT: expected - alone, one prompt from standard input, got {count} texts")
    if not all(args.stop):
        raise UserError("--stop: expected a text of at least one character, got an empty one")
    if args.drafter and not args.target:
        raise UserError("--drafter needs --target: name both directories, or neither for the shipped pair")
    if args.chat and args.prompt_ids:
        raise UserError("--chat: expected TEXT, what a user says, got --prompt-ids")
    if args.target and not args.drafter and not args.baseline:
        raise UserError("--target needs --drafter: name both directories, or add --baseline to run the target alone")
    if args.hosts is not None and args.devices is None:
        raise UserError("--hosts needs --devices, the number of devices of all processes")
    if args.hosts is not None and args.timings:
        raise UserError("--timings measures one process: leave it or --hosts out")
    if args.draft_length == AUTO and (args.loop != "streamed" or args.timings):
        other = "--timings" if args.timings else f"--loop {args.loop}"
        raise UserError(f"{other}: needs one draft length, and --draft-length {AUTO} changes it; leave one of them out")
    if args.quiet and args.timings:
        raise UserError("--timings prints figures, and --quiet prints nothing but the text: leave one of them out")


def _texts(args: argparse.Namespace) -> list[str]:
    """The prompts, from the arguments, standard input or files.  Errors: UserError."""
    if args.prompt_file:
        names = [f"--prompt-file {file}" for file in args.prompt_file]
        return [
            _checked(name, _decoded(name, _read_file(name, file)))
            for name, file in zip(names, args.prompt_file, strict=True)
        ]
    if args.text == [STDIN]:
        if sys.stdin is None:
            raise UserError("standard input is closed: expected a prompt, because TEXT is -")
        return [_checked("standard input", _decoded("standard input", sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)))]
    for text in [*args.text, *args.stop]:
        if any("\ud800" <= character <= "\udfff" for character in text):  # how Python passes on other bytes
            raise UserError("TEXT: expected UTF-8, got bytes that are not; set the terminal to UTF-8")
    return [_checked("TEXT", text) for text in args.text]


def _checked(name: str, text: str) -> str:
    if not text:
        raise UserError(f"{name}: the prompt is empty: expected a text of at least one character")
    return text


def _read_file(name: str, file: str) -> bytes:
    path = Path(file)
    try:
        if path.is_dir():
            raise UserError(f"{name}: expected a file, got a directory")
        if path.exists() and not path.is_file():  # opening a FIFO may wait forever
            raise UserError(f"{name}: expected a regular file, got a device or a pipe; give - as TEXT to read a pipe")
        with path.open("rb") as opened:
            return opened.read(MAX_PROMPT_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; name a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read ({reason}); name a text file that you may read") from error


def _decoded(name: str, content: bytes) -> str:
    """`content` as text, without a byte-order mark and without the line break at its end, which editors and shells add."""
    if len(content) > MAX_PROMPT_BYTES:
        raise UserError(f"{name}: expected at most {MAX_PROMPT_BYTES >> 20} MiB of text, got more; shorten it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: expected UTF-8, got the byte 0x{content[error.start]:02x} at {error.start}; convert it to UTF-8"
        ) from error
    return re.sub(r"\r?\n\Z", "", text)


def _encoded(text: str, mode: str | None, target: Gemma4, tokenizer: Tokenizer) -> list[int]:
    if mode is None:
        bos, ids = target.config.bos_token_id, tokenizer.encode(text, add_special_tokens=False).ids
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]  # a text may spell it out, as <bos>
    try:
        return chat(tokenizer, [("user", text)], **CHATS[mode])
    except ValueError as error:
        raise UserError(f"--chat: {error}") from error


def _parse_ids(text: str) -> list[int]:
    items = text.replace(",", " ").split()
    if not items:
        raise UserError("--prompt-ids: the prompt is empty: expected at least one token id")
    if not all(re.fullmatch("-?[0-9]{1,11}", item) for item in items):
        raise UserError(f"--prompt-ids: expected token ids separated by commas, such as 2,17,94, got {text!r:.80}")
    return list(map(int, items))


def run(request: Request, args: argparse.Namespace, began: float) -> None:
    """Print the text as it comes, the counts, and what was measured; or one JSON object after all of it.

    began: when the command started, by `time.perf_counter`.
    """
    out: Any = sys.stdout
    marks = args.marks or args.show_rejected  # else rejected tokens would look like text
    color = use_color(out) and not args.no_color and not args.marks
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character must not end the run
    kinds = {"color": color, "marks": marks, "show_rejected": args.show_rejected, "is_baseline": args.baseline}
    # The first text is printed as it comes, the others after it.
    printers = [
        Printer(io.StringIO() if row else out, request.tokenizer, **kinds) for row in range(len(request.prompts))
    ]
    generation, first_token_seconds = _generate(request, args, printers, began)
    printer, stats, figures = printers[0], generation.stats, None
    if not args.json:
        for other in printers[1:]:
            out.write(f"\n{cast(io.StringIO, other.out).getvalue()}")
        for row, values in enumerate(generation.logprobs or ()):
            _print_logprobs(out, request, generation.tokens[row].tolist(), values)
    if not args.json and not args.quiet:
        if args.baseline:
            print_baseline(out, stats)
        else:
            legend = printer.legend()
            out.write(f"\n{legend}\n" if legend else "\n")
            print_counts(out, stats, request.options.draft_length)
        out.flush()
    if args.timings:
        from decoding.cli import timings  # here, because all else needs nothing of `decoding.bench`

        with progress("measuring"):
            figures = timings.measure(request)
        if not args.json:
            timings.print_figures(out, figures, color=color)
    if args.json:
        seconds = {"first_token_seconds": first_token_seconds, **(figures.as_dict() if figures else NOT_MEASURED)}
        rows = [_as_dict(request, generation, row) for row in range(len(request.prompts))]
        what = rows[0] if len(rows) == 1 else {"texts": rows}
        print(json.dumps({**what, "stats": stats.as_dict(), "timings": seconds}), file=out)
    out.flush()


def _as_dict(request: Request, generation: Generation, row: int) -> dict[str, Any]:
    tokens = generation.tokens[row].tolist()
    found = {"tokens": tokens, "text": request.tokenizer.decode(tokens) if request.tokenizer else None}
    return found if generation.logprobs is None else {**found, "logprobs": generation.logprobs[row].tolist()}


def _print_logprobs(out: Any, request: Request, tokens: list[int], values: Any) -> None:
    """A line for each token: its log-probability under the target, its id, its text."""
    out.write("\nlog-probability, id, token\n")
    for token, value in zip(tokens, values, strict=True):
        text = repr(request.tokenizer.decode([token], skip_special_tokens=False)) if request.tokenizer else ""
        out.write(f"{value:9.4f} {token:7d}  {harmless(text)}\n")


def _generate(
    request: Request, args: argparse.Namespace, printers: list[Printer], began: float
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
                for printer, text in zip(printers, request.prompt_texts, strict=True):
                    printer.prompt(text)
        if not args.json:
            for row, printer in enumerate(printers):
                printer.round(jax.tree.map(lambda values, row=row: values[row : row + 1], last))

    try:
        with waiting:
            waiting.enter_context(progress("compiling (later starts are quicker)"))
            generation = request.autoregressive(on_round) if args.baseline else request.speculative(on_round)
    finally:
        if first_token_seconds is not None and not args.json:
            for printer in printers:  # after an error, too: its line is one of its own
                printer.end()
    return generation, first_token_seconds
