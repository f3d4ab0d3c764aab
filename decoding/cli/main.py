"""The command `gemma4-mtp`: arguments, help, exit codes.

Whatever a user can get wrong is found before the run, in `prepare`.  It becomes one line on standard error and exit code 2, and
so do a full disk, too little memory, and weights that lead to numbers that are not finite.  Any other exception from the run
itself is a bug, and keeps its traceback.
"""

import argparse
import errno
import functools
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import jax

import gemma4
from decoding.cli import devices, generate, processors
from decoding.draft_length import AUTO
from decoding.finite import NotFinite
from decoding.generation import LOOPS
from decoding.options import ACCEPTANCE_METHODS, MAX_DRAFT_LENGTH
from drafter.config import CONVENTIONS
from gemma4 import progress, shadowing
from gemma4.memory import NotEnoughMemory
from gemma4.shadowing import COMMAND, INTERRUPTED, MISTAKE

# With the line that --help has for each.  A command's own parser is built only when that command is asked for.
COMMANDS = {
    "generate": "continue a text",
    "chat": "talk to an instruction-tuned pair",
    "trace": "record a generation as a page to step through",
    "bench": "measure speed",
    "inspect": "show the architecture of a size",
    "plan": "predict memory and speed on a device",
    "oracle": "check another engine",
    "train": "train a small pair on your own text",
    "train-drafter": "train a drafter for a target",
    "course": "hand out stages as assignments, and grade them",
}
MODULES = {
    "chat": "decoding.cli.chat",
    "trace": "decoding.trace.cli",
    "bench": "decoding.bench.cli",
    "inspect": "decoding.planning.inspect_cli",
    "plan": "decoding.planning.plan_cli",
    "oracle": "decoding.oracle.cli",
    "train": "decoding.training.cli",
    "train-drafter": "decoding.training.cli",
    "course": "decoding.course.cli",
}
TRAINING = ("train", "train-drafter")
DTYPES = ("float32", "bfloat16", "float16")
OK, READER_GONE = 0, 141

DESCRIPTION = """\
Continue a text with a Gemma 4 target and its MTP drafter: the drafter proposes a few tokens, the target checks them all
in one forward pass and adds one of its own.  The text follows the target's own distribution (greedy: the very same
tokens); the drafter only decides how fast it comes."""

EXAMPLES = """\
examples:
  gemma4-mtp generate "In the beginning"                    the shipped pair, trained on the King James Bible
  gemma4-mtp generate "In the beginning" --show-rejected    with the drafts that the target rejected
  gemma4-mtp generate "In the beginning" --timings          with tokens/s, and the time of each stage
  gemma4-mtp generate "In the beginning" --temperature 1 --seed 7 --max-new-tokens 200
  gemma4-mtp generate --prompt-ids 2,17,94 --json           token ids in, one JSON object out
  gemma4-mtp generate --prompt-file verse.txt --quiet       a file in, the text and nothing else out
  echo "In the beginning" | gemma4-mtp generate - --marks   standard input in, [the target's own tokens] in brackets
  gemma4-mtp generate "In the" "And God" --stop .           two prompts at once, each up to its first full stop
  gemma4-mtp generate "In the beginning" --baseline         the target alone, one token a step
  gemma4-mtp generate "Hello" --target DIR --drafter DIR    any other pair, in Hugging Face layout
  gemma4-mtp generate "Hello" --target DIR --drafter DIR --chat plain    as a user of an instruction-tuned model
"""

OUTPUT = """\
output:
  First the prompt and the text, round by round.  On a terminal with colours (unless NO_COLOR is set):
    green         drafted tokens that the target accepted
    bold magenta  the target's own tokens: the first, and one at the end of each round
    red, struck   drafted tokens that the target rejected (--show-rejected); they are not part of the text
  Elsewhere the text is plain.  With --marks [the target's own] tokens have brackets and {rejected} ones braces;
  --show-rejected implies these marks where there are no colours.
  Control characters are shown as escapes, such as \\x1b; --json has the text as it is.
  A character whose bytes come from several tokens is shown with the last of them.
  Then a table of counts: tokens per round, and how often each draft position was accepted.  --quiet leaves it out.
  With --timings, once all this is printed, the same prompt is measured: the time of each stage (compiled alone), and
  tokens/s of speculative and of autoregressive decoding (compiled beforehand, without the prefill).

  --json prints one object instead, with
    tokens   ids of the new tokens          text     the same as text (null without a tokenizer)
    logprobs of the tokens, with --logprobs
    texts    in place of these, a list of objects with them, if there are several prompts
    stats    rounds, drafted, accepted, emitted, tokens_per_round, acceptance_per_position
    timings  first_token_seconds: from the start of the command, without Python's imports, but with loading and
             compilation.  The rest only with --timings, else null: speculative and autoregressive (tokens_per_second
             and seconds_per_round each), speed_up, stage_seconds (null, too, where there is nothing to measure).
"""

NOTES = """\
The text ends at an end-of-sequence token of the target's configuration, or after --max-new-tokens.
Compiled code is kept in $XDG_CACHE_HOME/gemma4-mtp (~/.cache/gemma4-mtp), so that later starts are quick; it may be
deleted at any time.  JAX_COMPILATION_CACHE_DIR moves it.

exit codes: 0 done; 2 a mistake in the arguments, in the files they name or in JAX's environment variables, too little
memory, or no space left for the output (one line on standard error says which); 130 interrupted; 141 the reader of the
output has closed it.
"""


OUT_OF_MEMORY = "out of memory; choose a smaller model, --dtype bfloat16 or fewer tokens, or end other programs"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise generate.UserError(f"{message}; `{self.prog} --help` shows what is possible")

    def _print_message(self, message: str, file: Any = None) -> None:
        file.write(message)  # argparse's own ignores a full disk


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Errors: UserError for arguments that no command has."""
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    return make_parser(named).parse_args(arguments)


def make_parser(named: str | None) -> argparse.ArgumentParser:
    """The parser of all commands.  Only the one that is `named` has its own options; of the others it knows the help line."""
    parser = _Parser(
        prog=COMMAND,
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\nOptions, output and exit codes: gemma4-mtp generate --help",
        formatter_class=_layout,
    )
    parser.add_argument("--version", action="version", version=f"{COMMAND} {gemma4.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, line in COMMANDS.items():
        if not _is_here(command):
            continue
        if command != named:
            commands.add_parser(command, help=line)
        elif command == "generate":
            _add_generate(commands)
        elif command in TRAINING:
            _module(command).add_command(commands, _layout, command, line)
        else:
            _module(command).add_command(commands, _layout)
    return parser


def _is_here(command: str) -> bool:
    """Students' copies lack some packages."""
    package = ".".join(MODULES.get(command, __name__).split(".")[:2])
    return importlib.util.find_spec(package) is not None


def _module(command: str) -> Any:
    """That of a command other than `generate`.  Imported here, because most starts need none of them."""
    return importlib.import_module(MODULES[command])


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=120)


def _add_generate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "generate",
        help=COMMANDS["generate"],
        description=f"{DESCRIPTION}\n\nDefaults are in parentheses.",
        epilog="\n".join([EXAMPLES, OUTPUT, NOTES]),
        formatter_class=_layout,
        allow_abbrev=False,
    )
    option, number = command.add_argument, functools.partial(_number, command)
    option(
        "text",
        metavar="TEXT",
        nargs="*",
        help="the prompt, or - to read it from standard input; the target's BOS token is put before it, unless it begins so; "
        "several texts are several prompts, read as one batch",
    )
    directory = functools.partial(option, metavar="DIR", type=path)
    option(
        "--prompt-file",
        metavar="FILE",
        type=path,
        action="append",
        default=[],
        help="the prompt (repeated: several, one a file), as a text file: UTF-8, at most "
        f"{generate.MAX_PROMPT_BYTES >> 20} MiB; from a file and from standard input, a line break at the end is left out",
    )
    option(
        "--prompt-ids",
        metavar="IDS",
        action="append",
        default=[],
        help="the prompt as token ids, taken as they are, such as 2,17,94 (repeated: several)",
    )
    option(
        "--chat",
        choices=generate.CHATS,
        help="TEXT is a user's turn to an instruction-tuned model: answered at once, in the form of E2B and E4B (plain) or "
        "of 26B-A4B and 31B (empty-thought), or after a thought (thinking)",
    )
    directory(
        "--target",
        help="directory of the target (config.json, weights, tokenizer.json), or its name on the "
        "Hugging Face hub, such as google/gemma-4-E2B-it (needs the extra `hub`)",
    )
    directory("--drafter", help="directory of its drafter; give both, or neither for the shipped pair")
    option(
        "--convention",
        choices=CONVENTIONS,
        help="of the drafter's position and window, which engines compute in two ways (the one in the drafter's files)",
    )
    option(
        "--draft-length",
        metavar="N",
        type=draft_length,
        default=4,
        help=f"tokens drafted a round, 1 to {MAX_DRAFT_LENGTH}, or {AUTO}: chosen round by round, from time and acceptance (4)",
    )
    number("--max-new-tokens", "N", 64, "tokens to generate at most")
    otherwise = "(as the checkpoint's generation_config.json says, otherwise %s)"
    option(
        "--temperature", metavar="T", type=float, help=f"0 is greedy, 1 the model's own distribution {otherwise % 0}"
    )
    option("--top-k", metavar="K", type=int, help=f"sample from the K most likely tokens; 0: from all {otherwise % 0}")
    option(
        "--top-p",
        metavar="P",
        type=float,
        help=f"sample from the fewest most likely tokens whose probabilities add up to P {otherwise % 1}",
    )
    processors.add_options(command)
    option(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end with the token that completes TEXT; may be repeated",
    )
    option("--logprobs", action="store_true", help="print the log-probability of each token under the target alone")
    option(
        "--acceptance",
        choices=ACCEPTANCE_METHODS,
        default="token",
        help="how sampled drafts are accepted: one by one (token), or as a whole, which accepts more (block) (%(default)s)",
    )
    number("--seed", "N", 0, "of the random numbers; of several prompts, the second has N + 1, and so on")
    option("--dtype", choices=DTYPES, default=DTYPES[0], help="of weights and arithmetic (%(default)s)")
    devices.add_options(command, hosts=True)
    option(
        "--loop",
        choices=LOOPS,
        default="streamed",
        help="plain: the reference loop as written in decoding/generation.py, one call a round; streamed: several short "
        "rounds a call; on_device: all rounds in one call, and the text at its end (%(default)s)",
    )
    option("--baseline", action="store_true", help="the autoregressive loop alone, without a drafter")
    option(
        "--timings", action="store_true", help="measure, after the text, and print tokens/s and the time of each stage"
    )
    option("--json", action="store_true", help="print one JSON object and nothing else")
    option("--quiet", action="store_true", help="print the text and nothing else")
    option("--show-rejected", action="store_true", help="show rejected drafts too, before the token that replaced them")
    option("--marks", action="store_true", help="marks in place of colours, and where the output is no terminal")
    option("--no-color", action="store_true", help="no colours on a terminal")


def draft_length(text: str) -> int | str:
    """A number or "auto".  Errors: ArgumentTypeError for anything else."""
    try:
        return AUTO if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of tokens or {AUTO}, got {text!r:.80}") from None


def path(text: str) -> str:
    """`text` with the user's home in place of ~.  Errors: ArgumentTypeError if that is not known."""
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(f"the home directory of {expanded!r} is not known; write the whole path")
    return expanded


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
            return _command(sys.argv[1:] if arguments is None else arguments, began)
        finally:
            sys.stdout.flush()  # here, where a failure has an exit code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return READER_GONE
    except (NotFinite, NotEnoughMemory) as error:
        return mistake(error)
    except NotImplementedError as error:  # of a course: a stage that a student has not written yet
        if not getattr(error, "is_mistake", False):
            raise
        return mistake(error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return mistake(OUT_OF_MEMORY)
    except OSError as error:
        if is_out_of_memory(error):
            return mistake(OUT_OF_MEMORY)
        if error.errno != errno.ENOSPC:
            raise
        discard(sys.stdout)
        where = error.filename or "standard output (or a file that was being written)"
        return mistake(f"{where}: no space left on the device; make room there, or write elsewhere")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, JAX or the operating system could not get memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _command(arguments: Sequence[str], began: float) -> int:
    # What is asked for in float32 is multiplied in float32: by default GPUs and TPUs round the factors to fewer bits.
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        args = parse(arguments)
        if args.command != "oracle":  # which checks engines in their own types
            # --dtype decides, so that a seed gives the same text in every environment.
            jax.config.update("jax_enable_x64", False)
        progress.show(not getattr(args, "quiet", False))
        devices.connect(getattr(args, "hosts", None))
        check_devices()
        prepared: Any = None
        if args.command not in ("bench", "inspect", "plan"):  # bench times compilation, the others compile nothing
            keep_compiled_code()
        match args.command:
            case "generate":
                prepared = generate.prepare(args)
            case "oracle" | "course":
                pass
            case _:
                prepared = _module(args.command).prepare(args)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # to `main`
        return mistake(OUT_OF_MEMORY if is_out_of_memory(error) else error)
    match args.command:
        case "generate":
            generate.run(prepared, args, began)
        case "chat":
            _module("chat").run(prepared, args)
        case "trace":
            return _module("trace").run(args, prepared)
        case "bench" | "inspect" | "plan":
            _module(args.command).run(args, prepared)
        case "oracle":
            return _run_oracle(args)
        case "train" | "train-drafter":
            return _run_training(args, prepared)
        case "course":
            return _run_course(args)
    return OK


def _run_course(args: argparse.Namespace) -> int:
    from decoding.course.error import CourseError

    try:
        return _module("course").run(args)
    except (CourseError, UnicodeDecodeError, OSError) as error:
        return mistake(error)


def _run_oracle(args: argparse.Namespace) -> int:
    from decoding.oracle.engine import OracleError

    try:
        return _module("oracle").run(args)
    except OracleError as error:
        return mistake(error)


def _run_training(args: argparse.Namespace, training: Any) -> int:
    cli = _module(args.command)
    try:
        cli.run(training)
    except FloatingPointError as error:
        return mistake(error)
    except KeyboardInterrupt:
        if not args.quiet:
            print(f"{COMMAND}: {cli.resume_hint(training)}", file=sys.stderr)
        raise
    return OK


def check_devices() -> None:
    """Errors: UserError if JAX finds no device of the kind that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    # jax 0.10.2: the second, empty, for `cuda` without its plugin; the third in its place under `python -O`
    except (RuntimeError, AssertionError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        reason = f" ({error})" if isinstance(error, RuntimeError) and str(error) else ""
        raise generate.UserError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX finds no such device here{reason}; unset it, or set it "
            "to cpu"
        ) from error


def mistake(error: Exception | str) -> int:
    """One line on standard error; the exit code."""
    try:
        return shadowing.mistake(error)
    except OSError:  # standard error is full, too
        discard(sys.stderr)
        return MISTAKE


def discard(stream: TextIO) -> None:
    """Send what the stream still holds nowhere: Python flushes it once more at exit, and would report the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def keep_compiled_code() -> None:
    """Turn on JAX's compilation cache, in the user's cache directory.  Without one to write to, every start compiles."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
        try:
            directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma4-mtp"
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except (OSError, RuntimeError):  # the latter: the user has no home
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # a full disk is no reason to complain
