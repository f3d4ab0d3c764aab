"""What `generate --timings` measures and prints: tokens per second of both loops, and the time of each stage."""

from io import TextIOBase

from decoding import fast
from decoding.bench.generate_timing import Figures, Speed, compare, time_stages
from decoding.cli.console import print_rich, print_rows
from decoding.cli.generate import Request

CAPTION = (
    "\nMeasured after the text, with the same prompt. Tokens/s: both loops compiled beforehand, without the prefill, "
    "median of up to 3 runs. Stages: each compiled alone and repeated in one call; a whole round compiles them together, "
    "so they need not add up to it."
)


def measure(request: Request) -> Figures:
    """Of the baseline, only its own speed."""
    if request.draft_model is None:
        (speed,) = compare(request.autoregressive)
        return Figures(speed)
    target, draft_model, options = request.target, request.draft_model, request.options
    if request.loop != "plain":  # the stages in the forms that this loop runs
        target, draft_model, options = (
            fast.for_backend(target),
            fast.for_backend(draft_model),
            fast.with_kernels(options),
        )
    stages = time_stages(target, draft_model, request.prompt, options, request.max_new_tokens)
    speculative, autoregressive = compare(request.speculative, request.autoregressive)
    return Figures(autoregressive, speculative, stages)


def print_figures(out: TextIOBase, figures: Figures, *, color: bool) -> None:
    if figures.stages is None:
        speed = _speed(figures.autoregressive)
        print_rich(out, f"autoregressive: {speed} (compiled beforehand, without the prefill)", color=color)
        return
    rows = {"ms for each stage": "  ".join(f"{name} {_ms(seconds)}" for name, seconds in figures.stages.items())}
    if figures.speculative:
        rows["ms for a whole round"] = _ms(figures.speculative.seconds_per_round)
    rows |= {"speculative": _speed(figures.speculative), "autoregressive": _speed(figures.autoregressive)}
    if figures.speed_up:
        rows["speed-up"] = f"{figures.speed_up:.2f} x"
    print_rows(out, rows)
    print_rich(out, CAPTION, color=color, style="dim")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.{2 if seconds < 0.01 else 0}f}"


def _speed(speed: Speed | None) -> str:
    return f"{speed.tokens_per_second:.0f} tokens/s" if speed else "not measured: the text ended with its first token"
