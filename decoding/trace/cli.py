"""`gemma4-mtp trace`: record a generation, or read one that another engine recorded, and write the page."""

import argparse
import contextlib
import errno
import functools
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from decoding import fast
from decoding.bench.generate_timing import STAGES
from decoding.bench.stages import Timer, autoregressive_stage
from decoding.cli import generate
from decoding.cli.generate import Request, UserError
from decoding.cli.main import DTYPES, path
from decoding.options import ACCEPTANCE_METHODS, Options
from decoding.stages.prefill import prefill
from decoding.trace.check import read_trace
from decoding.trace.page import build_page
from decoding.trace.record import RoundsDiffer, made_by, record
from drafter.config import CONVENTIONS
from gemma4.progress import progress
from gemma4.shadowing import mistake

DESCRIPTION = """\
Generate a text, record every round, and write one HTML file on which a person steps through it: the drafted tokens,
both models' probabilities, the random numbers and the verdicts, the residual, the cache, the clusters, and the time of
each stage.  The page needs no network and no program but a browser.  It decides every draft again from the recorded
numbers, and says whether it agrees."""

EPILOG = """\
examples:
  gemma4-mtp trace "And Moses said unto the people, Fear not: for" --out trace.html
  gemma4-mtp trace "In the beginning" --out trace.html --acceptance block --draft-length 6 --seed 7
  gemma4-mtp trace "In the beginning" --out trace.html --json trace.json      the recorded numbers, too
  gemma4-mtp trace --from trace.json --out trace.html                         a page of any engine's trace

tutorials/reference/trace_format.md describes the JSON.  exit codes: as of generate."""

# What `generate.prepare` reads besides this command's own options.
OF_GENERATE = {
    **{"loop": "plain", "baseline": False, "timings": False, "quiet": False, "devices": None, "hosts": None},
    **{"stop": [], "logprobs": False, "logit_bias": [], "min_p": None},
    **dict.fromkeys(("repetition_penalty", "frequency_penalty", "presence_penalty")),
}
RECORDED = {
    "text": "TEXT",
    "prompt_file": "--prompt-file",
    "prompt_ids": "--prompt-ids",
    "chat": "--chat",
    "json": "--json",
}


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    command = commands.add_parser(
        "trace",
        help="record a generation as a page to step through",
        description=f"{DESCRIPTION}\n\nDefaults are in parentheses.",
        epilog=EPILOG,
        formatter_class=layout,
        allow_abbrev=False,
    )
    option = command.add_argument
    option("text", metavar="TEXT", nargs="*", help="the prompt, or - to read it from standard input")
    file, directory = (functools.partial(option, metavar=name, type=path) for name in ("FILE", "DIR"))
    file("--out", required=True, help="the page; a file of this name is replaced")
    file("--json", help="write the recorded numbers here, too")
    file("--from", dest="source", help="do not generate: show the trace in this JSON file")
    file("--prompt-file", action="append", default=[], help="the prompt, as a text file")
    option("--prompt-ids", metavar="IDS", action="append", default=[], help="the prompt as token ids, such as 2,17,94")
    option(
        "--chat", choices=generate.CHATS, help="TEXT is a user's turn to an instruction-tuned model (as for generate)"
    )
    directory("--target", help="directory of the target")
    directory("--drafter", help="directory of its drafter; give both, or neither for the shipped pair")
    option("--convention", choices=CONVENTIONS, help="of the drafter's position and window (the one in its files)")
    option("--draft-length", metavar="N", type=int, default=4, help="tokens drafted a round (4)")
    option("--max-new-tokens", metavar="N", type=int, default=64, help="tokens to generate at most (64)")
    option(
        "--temperature",
        metavar="T",
        type=float,
        default=1.0,
        help="1 is the model's own distribution; 0 is greedy, where no random number decides (1)",
    )
    option("--top-k", metavar="K", type=int, help="sample from the K most likely tokens (as for generate)")
    option("--top-p", metavar="P", type=float, help="sample from the fewest tokens that add up to P (as for generate)")
    option("--acceptance", choices=ACCEPTANCE_METHODS, default="token", help="one by one, or as a whole (%(default)s)")
    option("--seed", metavar="N", type=int, default=0, help="of the random numbers (0)")
    option("--dtype", choices=DTYPES, default=DTYPES[0], help="of weights (%(default)s)")
    option(
        "--no-times", action="store_true", help="measure no times, which takes some seconds; the page is without them"
    )
    command.set_defaults(**OF_GENERATE)


def prepare(args: argparse.Namespace) -> Request | dict[str, Any]:
    """What is to be recorded, or a trace that was read.  Errors: ValueError or OSError for every mistake of a user."""
    for name in ("out", "json"):
        if (file := getattr(args, name)) is not None:
            _check_output(f"--{name}", file)
    if args.json is not None and Path(args.json).resolve() == Path(args.out).resolve():
        raise UserError("--out and --json: expected two files, got the same name twice")
    if args.source is None:
        if len(given := [*args.text, *args.prompt_file, *args.prompt_ids]) > 1:
            raise UserError(f"a trace shows one text: expected one prompt, got {len(given)}")
        return generate.prepare(args)
    if given := [name for field, name in RECORDED.items() if getattr(args, field)]:
        raise UserError(f"--from shows a recorded text: leave out {', '.join(given)}")
    return read_trace(args.source)


def _check_output(option: str, file: str) -> None:
    place = Path(file)
    try:
        if "\0" in file:
            raise UserError(f"{option}: expected the name of a file, got one with a NUL character")
        if place.is_dir():
            raise UserError(f"{option} {file}: expected the name of a file, got a directory")
        if place.exists() and not place.is_file():
            raise UserError(f"{option} {file}: expected the name of a file, got a device or a pipe")
        if not place.parent.is_dir():
            raise UserError(f"{option} {file}: there is no directory {place.parent}; make it first")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{option} {file!r:.80}: cannot be a file's name ({error})") from error


def run(args: argparse.Namespace, work: Request | dict[str, Any]) -> int:
    """Record unless that is done, and write the files.  The exit code is returned."""
    try:
        trace = work if isinstance(work, dict) else record_request(work, args)
    except RoundsDiffer as error:
        return mistake(error)
    page = build_page(trace)
    try:
        write(args.out, page)
        if args.json is not None:
            write(args.json, json.dumps(trace, separators=(",", ":")) + "\n")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise  # `decoding.cli.main` has words for these
        return mistake(f"{error.filename or args.out}: cannot be written ({error.strerror}); choose another directory")
    size = len(page.encode()) / 1000
    print(f"{args.out}: {len(trace['rounds'])} rounds, {len(trace['text']['ids'])} tokens, {size:.0f} kB")
    return 0


def record_request(request: Request, args: argparse.Namespace) -> dict[str, Any]:
    """Errors: RoundsDiffer, NotFinite."""
    assert request.draft_model is not None, "a trace has a drafter"
    with progress("recording"):
        trace = record(
            request.target, request.draft_model, request.tokenizer, request.prompt, request.options,
            max_new_tokens=request.max_new_tokens, seed=request.seed,
        )  # fmt: skip
    names = (
        ("the shipped pair", "the shipped pair")
        if args.target is None
        else (Path(args.target).name, Path(args.drafter).name)
    )
    command = shlex.join(["gemma4-mtp", *sys.argv[1:]]) if args.target is None else "gemma4-mtp trace"
    trace["made_by"] = made_by(command, request.target, names)
    trace["times"] = None
    if not args.no_times:
        with progress("measuring the time of each stage"):
            trace["times"] = measure(request)
    return trace


LAPS = 5  # of each stage, which take turns, so that a busy moment of the machine does not count for one of them alone


def measure(request: Request) -> dict[str, Any]:
    """The trace's field `times`: the median of a few laps of each stage alone, in the forms that `generate` runs."""
    assert request.draft_model is not None
    target, draft_model = fast.for_backend(request.target), fast.for_backend(request.draft_model)
    options = fast.with_kernels(request.options)
    how = {"max_new_tokens": request.max_new_tokens, "key": jax.random.key(0)}
    state = prefill(target, request.prompt, options, **how)
    timers = {name: Timer(stage, target, draft_model, state, options) for name, stage in STAGES.items()}
    alone = Options(0, options.sampling, eos_ids=options.eos_ids, kernels=options.kernels)
    state = prefill(target, request.prompt, alone, **how)
    timers["step"] = Timer(autoregressive_stage, target, draft_model, state, alone)
    laps = [{name: timer.lap() for name, timer in timers.items()} for _ in range(LAPS)]
    times = {name: float(f"{1000 * statistics.median(lap[name] for lap in laps):.4g}") for name in timers}
    return times | {
        "how": f"the median of {LAPS} laps of each stage, compiled alone and repeated in one call, on "
        f"{jax.devices()[0].platform}; a whole round compiles the stages together, so they need not add up to its time"
    }


def write(file: str, content: str) -> None:
    """The whole file or none of it: it is written beside its place, and then takes it."""
    place = Path(file).resolve()  # of a link, the file that it leads to
    handle, scratch = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:40]}.")
    try:
        with open(handle, "w", encoding="utf-8") as opened:
            opened.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)
        os.replace(scratch, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
