"""`gemma4-mtp plan`: arguments, and the prediction as tables."""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from decoding.bench import cost
from decoding.bench.cli import numbers
from decoding.bench.plot import check_plot, saved_figure
from decoding.bench.report import table
from decoding.bench.subject import LAYOUTS
from decoding.bench.work import Storage
from decoding.options import MAX_DRAFT_LENGTH
from decoding.planning.architecture import models_of
from decoding.planning.claims import page
from decoding.planning.devices import CPU, DEVICES, Device, this_cpu
from decoding.planning.plan import Setup, plan

DESCRIPTION = """\
Predict on paper how a pair would run on a device: whether it fits, how long each stage takes, tokens per second of both loops,
the best draft length, and the acceptance from which speculation pays.  Only shapes are needed."""

EPILOG = """\
examples:
  gemma4-mtp plan 31B --device b200                          acceptance 0.7, context 8192, batch 1
  gemma4-mtp plan 31B --device h100 --count 2 --accept-rate 0.844,0.599,0.385,0.271
                                                             measured acceptance, by draft position
  gemma4-mtp plan 26B-A4B --device m4-max --batch 8 --weight-bits 4.5
  gemma4-mtp plan E2B --device h100 --bandwidth 2000         with one figure replaced
  gemma4-mtp plan 12B --memory 24 --bandwidth 900 --flops 100    any other device
  gemma4-mtp plan --claims                                   published speed-ups beside what this model predicts

how to read it:
  Every figure is the device at its best: all of its bandwidth, all of its rate.  Real programs reach a part of both, and both
  loops lose by that, so that speed-ups are closer to the truth than tokens per second.  Experts are chosen at random here.
  The kernels are those of this project's programs; with --launch 0 an engine is assumed that waits for none.
"""


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    command = commands.add_parser(
        "plan",
        help="predict memory and speed on a device",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=layout,
        allow_abbrev=False,
    )
    option = command.add_argument
    option("model", metavar="SIZE|DIR", nargs="?", help=f"{', '.join(LAYOUTS)}, or a directory with config.json")
    option("--drafter", metavar="DIR", help="directory of the drafter's config.json; a released size has its own")
    option("--device", metavar="NAME", help=f"{', '.join(DEVICES)}, or {CPU}: this machine, measured (h100)")
    option("--count", metavar="N", type=int, default=1, help="devices over which the pair is split (1)")
    option(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="of weights and cache (bfloat16)",
    )
    option("--context", metavar="N", type=int, default=8192, help="tokens in the cache (8192)")
    option("--batch", metavar="N", type=int, default=1, help="texts at a time (1)")
    option("--draft-lengths", metavar="LIST", default="1-8", help="such as 1-8 or 2,4 (1-8)")
    option(
        "--accept-rate",
        metavar="LIST",
        default="0.7",
        help="the probability that a draft is accepted, or the share of rounds that accepts draft 1, 2, ... (0.7)",
    )
    option("--sampled", action="store_true", help="at a temperature: both distributions are written down")
    for name, what in (("weight", "the target's weights"), ("drafter", "the drafter's weights"), ("cache", "K/V")):
        option(
            f"--{name}-bits",
            metavar="B",
            type=float,
            help=f"of a number in {what}, scales included, such as 4.5 or 8.5",
        )
    for name, what in (
        ("memory", "GB of a device"),
        ("bandwidth", "GB/s of its memory"),
        ("flops", "TFLOP/s in --dtype"),
        ("launch", "microseconds to start a kernel"),
    ):
        option(f"--{name}", metavar="X", type=float, help=f"{what}, in place of the data sheet's")
    option(
        "--claims",
        action="store_true",
        help="print published speed-ups beside this model's, as a page, and nothing else",
    )
    option("--json", action="store_true", help="print one JSON object and nothing else")
    option("--plot", metavar="FILE", type=os.path.expanduser, help="draw speed-up over draft length (needs matplotlib)")


def prepare(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Errors: ValueError or OSError for a user's mistake."""
    if args.claims:
        if args.model or args.json or args.plot:
            raise ValueError("--claims: prints a page of its own; leave model, --json and --plot out")
        return lambda: {"page": list(page())}
    if args.plot is not None:
        check_plot(Path(args.plot))
    models = models_of(args.model, args.drafter, args.dtype)
    longest = models.target.config.max_position_embeddings
    for name, most in (("count", 4096), ("context", longest), ("batch", 65_536)):
        if not 1 <= getattr(args, name) <= most:
            raise ValueError(f"--{name}: expected 1 to {most}, got {getattr(args, name)}")
    lengths = numbers("--draft-lengths", args.draft_lengths)
    if max(lengths) > MAX_DRAFT_LENGTH:
        raise ValueError(f"--draft-lengths: expected 1 to {MAX_DRAFT_LENGTH} tokens a round, got {max(lengths)}")
    acceptance = acceptance_of(args.accept_rate, max(lengths))
    for name in ("weight_bits", "drafter_bits", "cache_bits", "memory", "bandwidth", "flops", "launch"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and (value > 0 or name == "launch" and value == 0)):
            raise ValueError(f"--{name.replace('_', '-')}: expected a number above 0, got {value:g}")
    target, drafter = Storage(args.weight_bits, args.cache_bits), Storage(args.drafter_bits, args.cache_bits)
    setup = Setup(
        device_of(args), args.count, args.context, args.batch, lengths, acceptance, args.sampled, target, drafter
    )
    return lambda: plan(models, setup)


def acceptance_of(text: str, gamma: int) -> list[float]:
    """One rate for every draft, or the share of rounds that reach each position.  Errors: ValueError."""
    try:
        rates = [float(item) for item in text.split(",")]
    except ValueError:
        rates = [math.nan]
    if not all(0 <= rate <= 1 for rate in rates) or rates != sorted(rates, reverse=True):
        raise ValueError(
            f"--accept-rate: expected one probability in 0..1, or several that fall from draft to draft, got {text!r:.80}"
        )
    return cost.reached(rates[0], gamma) if len(rates) == 1 else rates


def device_of(args: argparse.Namespace) -> Device:
    """Errors: ValueError for a device that is not known, and for figures that are missing."""
    by_hand = {"memory": 1e9, "bandwidth": 1e9, "flops": 1e12, "launch": 1e-6}
    given = {name: getattr(args, name) * unit for name, unit in by_hand.items() if getattr(args, name) is not None}
    if args.device == CPU:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
        device = this_cpu(args.dtype, memory)
    elif args.device is None and {"memory", "bandwidth", "flops"} <= given.keys():
        device = Device("figures given by hand", "gpu", *[0.0] * 5)
    elif (name := args.device or "h100") in DEVICES:
        device = DEVICES[name]
    else:
        raise ValueError(
            f"--device: expected {', '.join(DEVICES)} or {CPU}, got {name!r:.40}; or give --memory, --bandwidth and --flops"
        )
    device = device._replace(flops=device.flops_for(args.dtype))._replace(**given)
    if args.count > 1 and not device.link_bandwidth:
        raise ValueError(f"--count {args.count}: no link between several of {device.name} is known; plan for one")
    return device


def run(args: argparse.Namespace, prediction: Callable[[], dict[str, Any]]) -> None:
    found = prediction()
    print(json.dumps(found) if args.json else "\n".join(lines(found)), flush=True)
    if args.plot is not None:
        plot(found, Path(args.plot))


def lines(found: dict[str, Any]) -> Iterator[str]:
    if "page" in found:
        yield from found["page"]
        return
    setup, memory = found["setup"], found["memory"]
    many = f"{setup['count']} x " if setup["count"] > 1 else ""
    yield (
        f"{found['name']} in {found['dtype']} on {many}{setup['name']}: {setup['bandwidth'] / 1e9:,.0f} GB/s, "
        f"{setup['flops'] / 1e12:,.3g} TFLOP/s, {setup['launch'] * 1e6:g} us a kernel; batch {setup['batch']}, "
        f"context {setup['context']:,}"
    )
    yield ""
    fits = "fits" if memory["fits"] else "DOES NOT FIT"
    workspace = max(memory["round_workspace"], memory["prefill_workspace"])
    parts = ", ".join(f"{name} {gigabytes(memory[name])}" for name in ("target", "drafter", "cache"))
    yield f"memory of {'each' if many else 'the'} device: {parts}, workspace {gigabytes(workspace)}"
    yield f"  together {gigabytes(memory['total'])} of {gigabytes(memory['capacity'])}: {fits}"
    yield ""
    yield from table(COLUMNS, list(rows(found)))
    yield "(* the best draft length at this acceptance; the device at its best, see --help; in row none, verify is a step)"
    if found["experts"]:
        yield ""
        yield from expert_lines(found["experts"])


COLUMNS = (
    *("gamma", "draft, ms", "verify, ms", "mostly", "accept, ms", "read, MB", "GFLOP", "kernels"),
    *("tokens/round", "tokens/s", "speed-up", "pays from"),
)


def rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One for the autoregressive loop, one for each draft length."""
    step, *stages = found["stages"]

    def work(of: list[dict[str, Any]]) -> tuple[str, ...]:
        read, flops, kernels = (sum(stage[name] for stage in of) for name in ("bytes", "flops", "kernels"))
        return f"{read / 1e6:,.0f}", f"{flops / 1e9:,.3g}", f"{kernels:,.0f}"

    ms = lambda stage: f"{stage['seconds'] * 1e3:.3g}"
    speed = f"{found['autoregressive_tokens_per_second']:,.0f}"
    yield ("none", "", ms(step), step["bound_by"], "", *work([step]), "1", speed, "", "")
    for entry in found["loops"]:
        draft, verify, accept = (stage for stage in stages if stage["draft_length"] == entry["draft_length"])
        yield (
            f"{'* ' if entry['draft_length'] == found['best_draft_length'] else ''}{entry['draft_length']}",
            *(ms(draft), ms(verify), verify["bound_by"], ms(accept)),
            *work([draft, verify, accept]),
            f"{entry['tokens_per_round']:.2f}",
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['speed_up']:.2f} x",
            "never" if entry["break_even"] is None else f"{entry['break_even']:.0%}",
        )


def expert_lines(entries: list[dict[str, Any]]) -> Iterator[str]:
    one, *more = entries
    yield f"experts that a layer reads, of {one['of']}: {one['touched']:.1f} for the {one['tokens']} tokens of a step;"
    yield "for a verify of so many tokens, all rows together:"
    yield "  " + ", ".join(f"{entry['tokens']}: {entry['touched']:.1f}" for entry in more)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def plot(found: dict[str, Any], file: Path) -> None:
    """Speed-up over draft length, at this acceptance and at others."""
    with saved_figure(file) as axes:
        step = found["stages"][0]["seconds"]
        gammas = [entry["draft_length"] for entry in found["loops"]]
        for rate in (0.5, 0.6, 0.7, 0.8, 0.9):
            speed_ups = [
                (1 + sum(cost.reached(rate, entry["draft_length"]))) * step / entry["seconds_per_round"]
                for entry in found["loops"]
            ]
            axes.plot(gammas, speed_ups, "--", linewidth=0.9, label=f"acceptance {rate:g}")
        axes.plot(gammas, [entry["speed_up"] for entry in found["loops"]], "ko-", label="as asked for")
        axes.axhline(1, color="grey", linewidth=0.8)
        title = f"{found['name']} on {found['setup']['name']}, batch {found['setup']['batch']}, predicted"
        axes.set(xlabel="draft length", ylabel="speed-up over the autoregressive loop", title=title)
        axes.set_ylim(bottom=0)
        axes.legend()
