"""`gemma4-mtp bench`: arguments and help.  Everything that a user can get wrong is found before the first run."""

import argparse
import functools
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decoding.bench.extra.contexts import measure_contexts
from decoding.bench.extra.experts import time_experts
from decoding.bench.extra.heads import time_heads
from decoding.bench.extra.peer import Transformers, compare
from decoding.bench.machine import num_cores
from decoding.bench.measure import Plan, measure
from decoding.bench.noise import busy, load_average, varied
from decoding.bench.plot import check_plot, plot
from decoding.bench.report import lines
from decoding.bench.subject import LAYOUTS, Subject, from_directories, from_preset
from decoding.options import ACCEPTANCE_METHODS, MAX_DRAFT_LENGTH
from decoding.sampling import MIN_TEMPERATURE, Sampling
from gemma4.progress import is_shown

PEERS = ("transformers",)
MAX_COUNT = 10_000  # of prompts, hence of the rows of a batch; of runs and of threads
MIN_SCALE = 0.001  # every width is at its least there, because widths are rounded up
# Measurements of their own, and the options that each of them reads.
PAIR = ("target", "drafter", "preset", "scale", "dtype")
READ_BY = {
    "against": (*PAIR, "draft_lengths", "prompt_tokens", "new_tokens", "prompts", "runs"),
    "contexts": (*PAIR, "runs", "plot"),
    "heads": ("runs",),
    "experts": ("runs",),
}

DESCRIPTION = """\
Measure how fast a pair is on this machine: each stage alone, whole loops, and how both compare with what the formulas
need at least and with what the machine can do.  Without arguments, the shipped pair on text held out of its training."""

EPILOG = """\
examples:
  gemma4-mtp bench                                              the shipped pair, draft lengths 1 to 8
  gemma4-mtp bench --batch 1,8 --plot speed_up.png              also eight ragged prompts at once
  gemma4-mtp bench --batch 1,8 --threads 2                      and those eight in two threads of four prompts each
  gemma4-mtp bench --against transformers --draft-lengths 4     transformers' generate, plain and assisted, beside ours
  gemma4-mtp bench --preset E2B --scale 0.1 --accept-rate 0.7   random weights, a tenth of the width
  gemma4-mtp bench --preset 50M --contexts 512,4096,32768       how time and memory grow with the context
  gemma4-mtp bench --heads                                      the clustered head at its released size
  gemma4-mtp bench --experts                                    all experts for every token, or each token's own

what is measured:
  Models and loops run in the form in which `gemma4-mtp generate` runs them.  A stage is compiled alone and repeated in one
  call, so that the call itself does not count.  A loop runs whole generations, without their prefill; only with --against
  does the prefill count, for both engines.  All measurements alternate; figures are medians over --runs, with quartiles in
  --json.
  The speed-up is over our own autoregressive loop of the same kind; `predicted` follows from tokens per round and from the
  times of the stages.
  The share of bandwidth counts what must move at least: each weight in use once, and the keys and values that are visible.
  A model that fits into the processor's cache may exceed 100 %.  The share of the matmul rate counts operations in the same
  way.
  The cache of compiled code is off, so that compile times are those of a first start.
"""


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure speed",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=layout,
        allow_abbrev=False,
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    option, default = parser.add_argument, Plan()
    directory = functools.partial(option, metavar="DIR", type=os.path.expanduser)
    directory("--target", help="directory of a target; with --drafter, instead of the shipped pair")
    directory("--drafter", help="directory of its drafter")
    option("--preset", metavar="NAME", help=f"random weights in one of these layouts: {', '.join(LAYOUTS)}")
    option(
        "--scale",
        metavar="F",
        type=float,
        default=1.0,
        help=f"with --preset: all widths times F, {MIN_SCALE:g} to 1, rounded up to what the layers need (1)",
    )
    option(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of weights and arithmetic (%(default)s)",
    )
    option(
        "--draft-lengths",
        metavar="LIST",
        default="1-8",
        help="tokens drafted a round, such as 1-8 or 2,4 (%(default)s)",
    )
    option(
        "--batch", metavar="LIST", default="1", help="batch sizes, such as 1,8; prompts are ragged then (%(default)s)"
    )
    option(
        "--threads",
        metavar="N",
        type=int,
        default=default.threads,
        help="threads over which the loop on the device splits a batch (%(default)s)",
    )
    count = functools.partial(option, metavar="N", type=int)
    count("--prompt-tokens", default=default.prompt_tokens, help="length of the prompts (%(default)s)")
    count("--new-tokens", default=default.new_tokens, help="tokens to generate for each (%(default)s)")
    count("--prefill-tokens", default=default.prefill_tokens, help="length of the prompt of the prefill (%(default)s)")
    count(
        "--prompts",
        default=default.num_prompts,
        help="number of prompts, rounded up to a multiple of every batch size (%(default)s)",
    )
    count("--runs", default=default.runs, help="repetitions of all measurements, which alternate (%(default)s)")
    option("--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (0)")
    option(
        "--acceptance",
        choices=ACCEPTANCE_METHODS,
        default="token",
        help="how sampled drafts are accepted: one by one (token), or as a whole (block) (%(default)s)",
    )
    option("--accept-rate", metavar="A", type=float, help="simulate: accept each draft with probability A")
    option("--against", choices=PEERS, help="compare with this engine, and measure nothing else")
    option("--contexts", metavar="LIST", help="measure only a step at these lengths of the context, in tokens")
    option("--heads", action="store_true", help="measure only the clustered head against the dense one")
    option("--experts", action="store_true", help="measure only the two forms of a layer of experts")
    option("--json", action="store_true", help="print one JSON object and nothing else")
    option("--quiet", action="store_true", help="show no progress on a terminal, and do not warn of a busy machine")
    option(
        "--plot",
        metavar="FILE",
        type=os.path.expanduser,
        help="draw speed-up over draft length and batch, or the contexts (needs matplotlib)",
    )


def prepare(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Validate and load everything; the result runs the measurement.  Errors: ValueError or OSError for a user's mistake."""
    plan = plan_of(args)
    contexts = () if args.contexts is None else numbers("--contexts", args.contexts, least=16)
    check_read(args)
    if args.plot is not None:
        check_plot(Path(args.plot))
    if args.heads:
        return lambda: {"heads": time_heads(runs=plan.runs)}
    if args.experts:
        return lambda: {"experts": time_experts(runs=plan.runs)}
    subject = subject_of(args)
    needed = [("--contexts", context) for context in contexts]
    if not contexts:
        needed = [("--prompt-tokens and --new-tokens", plan.prompt_tokens + plan.new_tokens)]
        needed += [] if args.against else [("--prefill-tokens", plan.prefill_tokens + 1)]  # and the first new token
    longest = subject.target.config.max_position_embeddings
    for name, tokens in needed:
        if tokens > longest:
            raise ValueError(f"{name}: expected at most {longest} tokens, this model's context, got {tokens}")
    if args.against:
        peer = Transformers(subject)
        return lambda: {"against": against(subject, peer, plan)}
    if contexts:
        return lambda: {"contexts": measure_contexts(subject, contexts, plan.runs), "name": subject.name}
    return lambda: measure(subject, plan, progress)


def check_read(args: argparse.Namespace) -> None:
    """Errors: ValueError for two measurements at once, and for an option that nothing would read."""
    own = [name for name in READ_BY if getattr(args, name)]
    if len(own) > 1:
        raise ValueError("--against, --contexts, --heads, --experts are measurements of their own: give one of them")
    if not own:
        return
    parser = argparse.ArgumentParser()
    add_options(parser)
    for name, default in vars(parser.parse_args([])).items():
        if name not in (*own, *READ_BY[own[0]], "json", "quiet") and getattr(args, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} does nothing with --{own[0]}: leave one of them out")


def subject_of(args: argparse.Namespace) -> Subject:
    if args.preset is None:
        if args.scale != 1:
            raise ValueError("--scale: scales the layout of a --preset, not a pair with its own weights; give --preset")
        return from_directories(args.target, args.drafter, args.dtype)
    if args.target or args.drafter:
        raise ValueError("--preset: has random weights; give it, or --target and --drafter, not both")
    if 0 < args.scale < MIN_SCALE:
        raise ValueError(
            f"--scale: expected at least {MIN_SCALE:g}, got {args.scale:g}; smaller ones would change nothing"
        )
    return from_preset(args.preset, args.scale, args.dtype)


def plan_of(args: argparse.Namespace) -> Plan:
    draft_lengths = numbers("--draft-lengths", args.draft_lengths)
    if max(draft_lengths) > MAX_DRAFT_LENGTH:
        raise ValueError(f"--draft-lengths: expected 1 to {MAX_DRAFT_LENGTH} tokens a round, got {max(draft_lengths)}")
    for name in ("prompt_tokens", "new_tokens", "prefill_tokens", "prompts", "runs"):
        option, value, least = f"--{name.replace('_', '-')}", getattr(args, name), 3 if name == "new_tokens" else 1
        if value < least:
            raise ValueError(f"{option}: expected at least {least}, got {value}")
        if name in ("prompts", "runs"):
            check_count(option, value)
    if args.accept_rate is not None and not 0 <= args.accept_rate <= 1:
        raise ValueError(f"--accept-rate: expected a probability in 0..1, got {args.accept_rate:g}")
    sampling = Sampling(args.temperature)
    if args.acceptance != "token" and (sampling.is_greedy or args.accept_rate is not None):
        raise ValueError(
            f"--acceptance {args.acceptance}: is for sampled drafts; give a --temperature of {MIN_TEMPERATURE:g} or more, "
            "and no --accept-rate"
        )
    batches = numbers("--batch", args.batch)
    check_count("--batch", max(batches))
    if args.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {args.threads}")
    check_count("--threads", args.threads)
    if args.threads > 1 and max(batches) == 1:
        raise ValueError(
            "--threads: splits the rows of a batch, and a batch of one cannot be split; give a larger one, such as --batch 8"
        )
    full = math.lcm(*batches)
    if full > MAX_COUNT:  # of many sizes the smallest common multiple has hundreds of digits
        raise ValueError(
            f"--batch: expected sizes with a common multiple of at most {MAX_COUNT}, the number of prompts, got "
            f"{args.batch!r:.80}; give fewer sizes, or powers of two"
        )
    return Plan(
        draft_lengths=draft_lengths,
        batches=batches,
        streamed=min(draft_lengths, key=lambda length: abs(length - 4)),
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        prefill_tokens=args.prefill_tokens,
        num_prompts=full * -(-args.prompts // full),
        runs=args.runs,
        sampling=sampling,
        acceptance=args.acceptance,
        accept_rate=args.accept_rate,
        threads=args.threads,
    )


def check_count(option: str, count: int) -> None:
    if count > MAX_COUNT:
        raise ValueError(f"{option}: expected at most {MAX_COUNT}, got {count}")


def numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """`1-8` or `1,2,4` as numbers in rising order.  Errors: ValueError that names the option."""
    found: set[int] = set()
    for item in text.split(","):
        first, _, last = item.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or len(item) > 16:
            raise ValueError(f"{option}: expected numbers such as 1-8 or 1,2,4, got {text!r:.80}")
        if int(last or first) - int(first) > 1000:
            raise ValueError(f"{option}: expected a range of at most 1000 numbers, got {item}")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or min(found) < least:
        raise ValueError(f"{option}: expected numbers of at least {least}, got {text!r:.80}")
    return tuple(sorted(found))


def against(subject: Subject, peer: Transformers, plan: Plan) -> dict[str, Any]:
    """Greedy, batch 1, with the draft length that a plan streams."""
    texts = plan._replace(batches=(1,)).prompts(subject)
    found = compare(subject, peer, texts, plan.new_tokens, plan.streamed, plan.runs, progress)
    return {"name": subject.name, "draft_length": plan.streamed, "new_tokens": plan.new_tokens, **found}


def run(args: argparse.Namespace, measurement: Callable[[], dict[str, Any]]) -> None:
    is_busy = busy(load_average(), num_cores())
    if is_busy and not args.quiet:
        print(f"gemma4-mtp: {is_busy}", file=sys.stderr)
    found = measurement()
    progress("")
    found["notes"] = [note for note in (is_busy, varied(found)) if note]
    print(json.dumps(found) if args.json else "\n".join(lines(found)), flush=True)
    if args.plot is not None:
        plot(found, Path(args.plot))


def progress(what: str) -> None:
    """Show what is running, on one line of a terminal, which the next call replaces."""
    if is_shown():
        print(f"\r\x1b[K{what}{' ...' if what else ''}", end="", file=sys.stderr, flush=True)
