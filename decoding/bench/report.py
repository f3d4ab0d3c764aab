"""The record of a measurement as text and tables."""

from collections.abc import Iterator, Sequence
from typing import Any

from gemma4.config import FULL, SLIDING


def lines(found: dict[str, Any]) -> Iterator[str]:
    if "heads" in found:
        yield from _heads(found["heads"])
    elif "experts" in found:
        yield from _experts(found["experts"])
    elif "against" in found:
        yield from _against(found["against"])
    elif "contexts" in found:
        yield from _contexts(found["name"], found["contexts"])
    else:
        yield from _pair(found)
    yield from (f"note: {note}" for note in found.get("notes", ()))


def _pair(found: dict[str, Any]) -> Iterator[str]:
    subject, machine, plan, prefill = (found[name] for name in ("subject", "machine", "plan", "prefill"))
    params, size = subject["parameters"], subject["bytes"]
    yield f"{subject['name']}, {subject['dtype']}: target {_millions(params['target'])}, drafter {_millions(params['drafter'])}"
    yield (
        f"{machine['device']}, jax {machine['jax']}: copies {machine['bytes_per_second'] / 1e9:.1f} GB/s (read and written), "
        f"multiplies {machine['flops_per_second'] / 1e9:.0f} GFLOP/s"
    )
    yield (
        f"{_prompts(plan)} of {plan['prompt_tokens']} tokens{_ragged(plan)} ({subject['text']}), "
        f"{plan['new_tokens']} new ones, temperature {plan['sampling']['temperature']:g}, acceptance {_acceptance(plan)}"
    )
    yield f"memory: weights {sum(size.values()) / 1e6:.0f} MB{_peak(found['peak_bytes'])}"
    yield (
        f"prefill: {prefill['tokens_per_second']:.0f} tokens/s over {prefill['tokens']} tokens, "
        f"{prefill['share_of_flops']:.0%} of the matmul rate"
    )
    if prefill["gain"] > 1.05:
        yield f"  {prefill['gain']:.2f} times as fast as with every layer run for every token"
    for batch in found["batches"]:
        name = f"batch {batch['batch']}{_split(plan, batch['batch'])}"
        yield f"\n{name}: one stage at a time"
        yield from table(
            ("stage", "gamma", "ms", "MB", "MFLOP", "of bandwidth", "of matmul", "compiled in"),
            [_stage_row(entry) for entry in batch["stages"]],
        )
        yield f"\n{name}: whole loops"
        yield from table(
            ("loop", "gamma", "tokens/s", "ms/round", "tokens/round", "speed-up", "quartiles", "predicted"),
            [_loop_row(entry) for entry in batch["loops"]],
        )


def _prompts(plan: dict[str, Any]) -> str:
    return "1 prompt" if plan["num_prompts"] == 1 else f"{plan['num_prompts']} prompts"


def _peak(peak_bytes: int | None) -> str:
    return "" if peak_bytes is None else f", at most {peak_bytes / 1e6:.0f} MB in use"


def _split(plan: dict[str, Any], batch: int) -> str:
    threads = min(plan["threads"], batch)
    return "" if threads == 1 else f", on the device split over {threads} threads"


def _ragged(plan: dict[str, Any]) -> str:
    return "" if max(plan["batches"]) == 1 else " and less"


def _acceptance(plan: dict[str, Any]) -> str:
    if plan["accept_rate"] is not None:
        return f"simulated, {plan['accept_rate']:g} for each draft"
    return "as measured" if plan["acceptance"] == "token" else "by block, as measured"


def _stage_row(entry: dict[str, Any]) -> tuple[str, ...]:
    work = ("",) * 4
    if entry["bytes"]:
        work = (
            f"{entry['bytes'] / 1e6:.1f}",
            f"{entry['flops'] / 1e6:.0f}",
            *(
                "" if entry[share] is None else f"{entry[share]:.0%}"
                for share in ("share_of_bandwidth", "share_of_flops")
            ),
        )
    gamma = "" if entry["stage"].endswith("step") else str(entry["draft_length"])
    compiled = "" if entry["compile_seconds"] is None else f"{entry['compile_seconds']:.1f} s"
    # A draft's time is a difference of laps, so that of a short draft behind a long verify may be below zero.
    milliseconds = _ms(entry["seconds"]) if entry["seconds"] > 0 else "noise"
    return (entry["stage"], gamma, milliseconds, *work, compiled)


def _loop_row(entry: dict[str, Any]) -> tuple[str, ...]:
    if not entry["draft_length"]:
        return (
            entry["loop"],
            "none",
            f"{entry['tokens_per_second']:.0f}",
            _ms(entry["seconds_per_round"]),
            "1",
            "",
            "",
            "",
        )
    low, high = entry["speed_up_quartiles"]
    return (
        entry["loop"],
        str(entry["draft_length"]),
        f"{entry['tokens_per_second']:.0f}",
        _ms(entry["seconds_per_round"]),
        f"{entry['tokens_per_round']:.2f}",
        f"{entry['speed_up']:.2f} x",
        f"{low:.2f}-{high:.2f}",
        f"{entry['predicted']:.2f} x" if "predicted" in entry else "",
    )


def _against(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['name']} against {found['peer']}"
    yield (
        f"greedy, batch 1, {found['new_tokens']} new tokens, prefill included; draft length {found['draft_length']}; "
        f"{found['equal_texts']} of {found['texts']} texts equal theirs"
    )
    rows = []
    for loop in ("autoregressive", "speculative"):
        pair = found[loop]
        low, high = pair["ratio_quartiles"]
        ours, theirs = f"{pair['tokens_per_second']:.0f}", f"{pair['their_tokens_per_second']:.0f}"
        rows.append((loop, ours, theirs, f"{pair['ratio']:.2f} x", f"{low:.2f}-{high:.2f}", str(pair["runs"])))
    yield from table(("loop", "tokens/s", "theirs", "ratio", "quartiles", "pairs"), rows)


def _contexts(name: str, entries: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{name}: one token more, by what the cache holds (batch 1)"
    yield from table(
        (
            "context",
            "step, ms",
            "a sliding layer's attention, us",
            "a full layer's, us",
            "sliding cache, MB",
            "full cache, MB",
        ),
        [
            (
                str(entry["context"]),
                _ms(entry["seconds"]["step"]),
                *(
                    f"{entry['seconds'][kind] * 1e6:.0f}" if kind in entry["seconds"] else ""
                    for kind in (SLIDING, FULL)
                ),
                *(f"{entry['cache_bytes'][kind] / 1e6:.2f}" for kind in (SLIDING, FULL)),
            )
            for entry in entries
        ],
    )


def _heads(found: dict[str, float]) -> Iterator[str]:
    yield "a drafter's head at E2B's size (262,144 x 256, 2048 centroids, top 32), float32, batch 1: one choice"
    rows = [
        (name.removesuffix(" seconds"), _ms(value), "") for name, value in found.items() if name.endswith(" seconds")
    ]
    for i, (name, *_) in enumerate(rows):
        if f"dense over {name}" in found:
            rows[i] = (*rows[i][:2], f"{found[f'dense over {name}']:.1f} x")
    yield from table(("head", "ms", "faster"), rows)
    scored = found["rows whose best token was scored"]
    yield f"best token among the chosen clusters in {scored:.0%} of rows, and found in all of them"


def _experts(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "one layer of 26B-A4B's 128 experts, top 8, a quarter of the width, float32, batch 1"
    rows = [
        (
            str(entry["tokens"]),
            _ms(entry["dense seconds"]),
            _ms(entry["chosen seconds"]),
            f"{entry['dense seconds'] / entry['chosen seconds']:.1f} x",
        )
        for entry in found
    ]
    yield from table(("tokens", "dense, ms", "chosen, ms", "faster"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> Iterator[str]:
    """Columns of minimal width; all are right-aligned but those that `left` names."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
