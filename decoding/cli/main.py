"""The command `gemma4-mtp`: its arguments, its help, its exit codes.  `job.py` has what it does.

Whatever a user can get wrong is found before the run, in `prepare`, and becomes one line on standard error and exit
code 2, and so does a full disk.  Any other exception from the run itself is a bug, and keeps its traceback.
"""

import argparse
import errno
import functools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import jax

from decoding.bench import cli as bench
from decoding.cli.main.generate import CHATS, UserError, prepare, run
from decoding.options import ACCEPTANCE_METHODS
from decoding.oracle import cli as oracle
from decoding.oracle.engine import OracleError
from drafter.config import CONVENTIONS

DTYPES = ("float32", "bfloat16", "float16")
OK, MISTAKE, INTERRUPTED, READER_GONE = 0, 2, 130, 141

DESCRIPTION = """\
Continue a text with a Gemma 4 target and its MTP drafter: the drafter proposes a few tokens, the target checks them all
in one forward pass and adds one of its own.  The text has the target's own law (greedy: the very same tokens); only the
speed is the drafter's."""

EXAMPLES = """\
examples:
  gemma4-mtp generate "In the beginning"                    the shipped pair, trained on the King James Bible
  gemma4-mtp generate "In the beginning" --show-rejected    and what the target refused
  gemma4-mtp generate "In the beginning" --temperature 1 --seed 7 --max-new-tokens 200
  gemma4-mtp generate --prompt-ids 2,17,94 --json           ids in, one JSON object out
  gemma4-mtp generate "In the beginning" --baseline         the target alone, one token a step
  gemma4-mtp generate "Hello" --target DIR --drafter DIR    any other pair, in Hugging Face layout
  gemma4-mtp generate "Hello" --target DIR --drafter DIR --chat plain    as a user of an instruction-tuned model
"""

OUTPUT = """\
what is shown:
  First the prompt and the text, round by round as it comes.  On a terminal that has colours (unless NO_COLOR is set):
    green         tokens that were drafted and that the target accepted
    bold magenta  tokens of the target's own: the first, and one at the end of each round
    red, struck   drafted tokens that it rejected (--show-rejected); they are not part of the text
  Elsewhere accepted tokens are plain, [the target's own] stand in brackets and {rejected} ones in braces.
  A character whose bytes come from several tokens belongs to the last of them.
  Then a table, measured after the text on the same prompt: tokens per round, how often each draft position was
  accepted, the time of each stage (compiled alone), and tokens/s of speculative and of autoregressive decoding
  (compiled beforehand, without the prefill).

  --json prints one object instead, with
    tokens   ids of the new tokens          text     the same as text (null without a tokenizer)
    stats    rounds, drafted, accepted, emitted, tokens_per_round, acceptance_per_position
    timings  first_token_seconds (from the start of the command, compilation included), stage_seconds,
             speculative and autoregressive (tokens_per_second and seconds_per_round each), speed_up
             (null where there was nothing to measure)
"""

NOTES = """\
The text ends at an end-of-sequence token of the target's configuration, or after --max-new-tokens.
Compiled code is kept in $XDG_CACHE_HOME/gemma4-mtp (~/.cache/gemma4-mtp), so that a second start is quick; it may be
deleted at any time.  JAX_COMPILATION_CACHE_DIR moves it.

exit codes: 0 done; 2 a mistake in the arguments, in the files they name or in JAX_PLATFORMS, or no space left for the
output (one line on standard error says which); 130 interrupted; 141 nobody reads the output any more.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows what is possible")


def make_parser() -> argparse.ArgumentParser:
    layout = lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=120)
    parser = _Parser(
        prog="gemma4-mtp",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\nOptions, output and exit codes: gemma4-mtp generate --help",
        formatter_class=layout,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "generate",
        help="continue a text",
        description=f"{DESCRIPTION}\n\nDefaults stand in parentheses.",
        epilog="\n".join([EXAMPLES, OUTPUT, NOTES]),
        formatter_class=layout,
        allow_abbrev=False,
    )
    option, number = command.add_argument, functools.partial(_number, command)
    option("text", metavar="TEXT", nargs="?", help="the prompt; the target's BOS token is put before it")
    option("--prompt-ids", metavar="IDS", help="the prompt as token ids, taken as they are, such as 2,17,94")
    option(
        "--chat",
        choices=CHATS,
        help="TEXT is what a user asks an instruction-tuned model: answered at once, as E2B and E4B are asked (plain), the "
        "same for 26B-A4B and 31B (empty-thought), or after a thought (thinking)",
    )
    option("--target", metavar="DIR", help="directory of the target: config.json, weights, tokenizer.json")
    option("--drafter", metavar="DIR", help="directory of its drafter; give both, or neither for the shipped pair")
    option("--convention", choices=CONVENTIONS, help="where drafts stand, of two ways in the wild (the drafter's own)")
    number("--draft-length", "N", 4, f"tokens drafted a round, 1 to {LONGEST_DRAFT}")
    number("--max-new-tokens", "N", 64, "tokens to generate at most")
    number("--temperature", "T", 0.0, "0 is greedy, 1 the model's own law")
    number("--top-k", "K", 0, "sample from the K likeliest tokens; 0: from all")
    number("--top-p", "P", 1.0, "sample from the fewest likeliest tokens that have probability P together")
    option(
        "--acceptance",
        choices=ACCEPTANCE_METHODS,
        default="token",
        help="how sampled drafts are judged; by block more stay (%(default)s)",
    )
    number("--seed", "N", 0, "of the random numbers")
    option("--dtype", choices=DTYPES, default=DTYPES[0], help="of weights and arithmetic (%(default)s)")
    option("--baseline", action="store_true", help="the autoregressive loop alone, without a drafter")
    option("--json", action="store_true", help="print one JSON object and nothing else")
    option("--show-rejected", action="store_true", help="show rejected drafts too, before the token that replaced them")
    option("--no-color", action="store_true", help="marks in place of colours")
    bench.add_command(commands, layout)
    oracle.add_command(commands, layout)
    return parser


def _number(parser: argparse.ArgumentParser, name: str, metavar: str, default: int | float, what: str) -> None:
    parser.add_argument(name, metavar=metavar, type=type(default), default=default, help=f"{what} ({default:g})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is returned."""
    began = time.perf_counter()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed from the start, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))
    try:
        try:
            return _command(arguments, began)
        finally:
            sys.stdout.flush()  # here, where a failure has an exit code
    except OracleError as error:
        return mistake(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return READER_GONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        discard(sys.stdout)
        where = error.filename or "standard output (or a file that was being written)"
        return mistake(f"{where}: no space left on the device; make room there, or write elsewhere")


def _command(arguments: Sequence[str] | None, began: float) -> int:
    # What is asked for in float32 is multiplied in float32: by default GPUs and TPUs round the factors to fewer bits.
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        args = make_parser().parse_args(arguments)
        check_devices()
        if args.command == "bench":  # without the kept code: it times compilation
            job = bench.prepare(args)
        else:
            keep_compiled_code()
            job = None if args.command == "oracle" else prepare(args)
    except (ValueError, OSError) as error:
        return mistake(error)
    match args.command:
        case "oracle":
            return oracle.run(args)
        case "bench":
            bench.run(args, job)
        case "generate":
            run(job, args, began)
    return OK


def check_devices() -> None:
    """Errors: UserError where JAX finds nothing to run on, as JAX_PLATFORMS has it."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax 0.10.2: the latter, empty, for `cuda` without its plugin
        platforms, reason = os.environ.get("JAX_PLATFORMS", ""), f" ({error})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={platforms}: JAX finds no such device here{reason}; unset it, or set it to cpu"
        ) from error


def mistake(error: Exception | str) -> int:
    """One line on standard error; the exit code."""
    try:
        print("gemma4-mtp: error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    except OSError:  # full, too: nowhere is left to say it
        discard(sys.stderr)
    return MISTAKE


def discard(stream: TextIO) -> None:
    """What the stream still holds goes nowhere: Python flushes it once more as it exits, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def keep_compiled_code() -> None:
    """JAX's compilation cache, in the user's cache directory.  If that cannot be written to, every start compiles."""
    if jax.config.jax_compilation_cache_dir is None:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma4-mtp"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # a full disk is no reason to complain
