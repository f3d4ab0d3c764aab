"""`gemma4-mtp chat`: a conversation on the terminal, whose cache stays between turns."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from decoding.cli.console import TextStream, harmless, use_color
from decoding.cli.devices import add_options, mesh_of
from decoding.conversation import Conversation
from decoding.generation_config import load_sampling
from decoding.load import load_pair
from decoding.options import whole_number
from decoding.sampling import Sampling
from gemma4.chat import END_OF_THOUGHT, THOUGHT

DESCRIPTION = """\
Talk to an instruction-tuned pair.  Text comes as it is generated; the cache stays between turns, so that a turn reads only
what is new.  Ctrl-C ends an answer, Ctrl-D or /exit the conversation.

commands, at the beginning of a line:
  /reset           begin a new conversation (with the same system turn)
  /thoughts        show thoughts, or hide them again
  /help            this list
  /exit            end"""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
SAMPLING_FLAGS = ("temperature", "top_k", "top_p")


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    command = commands.add_parser(
        "chat",
        help="talk to an instruction-tuned pair",
        description=DESCRIPTION,
        formatter_class=layout,
        allow_abbrev=False,
    )
    option = command.add_argument
    option(
        "--target",
        metavar="DIR",
        type=os.path.expanduser,
        required=True,
        help="directory of the target, an instruction-tuned one (-it), or its name on the Hugging Face hub",
    )
    option("--drafter", metavar="DIR", type=os.path.expanduser, required=True, help="directory of its drafter")
    option("--system", metavar="TEXT", default="", help="a system turn before the first one")
    option("--thinking", action="store_true", help="ask for a thought before each answer")
    option(
        "--empty-thought",
        action="store_true",
        help="the template of 26B-A4B and 31B, which shows an empty thought instead",
    )
    option("--show-thoughts", action="store_true", help="show thoughts from the start")
    option("--max-new-tokens", metavar="N", type=int, default=1024, help="tokens of an answer at most (1024)")
    option("--draft-length", metavar="N", type=int, default=4, help="tokens drafted a round (4)")
    for name, kind in (("temperature", float), ("top-k", int), ("top-p", float)):
        option(f"--{name}", type=kind, help="as for generate (what the checkpoint's generation_config.json says)")
    option("--seed", metavar="N", type=int, default=0, help="of the random numbers (0)")
    option("--quiet", action="store_true", help="show no progress on a terminal")
    add_options(command, hosts=False)
    option(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of weights and arithmetic (float32)",
    )


def prepare(args: argparse.Namespace) -> Callable[[], Conversation]:
    """What begins a conversation.  Errors: ValueError or OSError for every mistake that a user can make."""
    given = {name: value for name in SAMPLING_FLAGS if (value := getattr(args, name)) is not None}
    sampling: Sampling = dataclasses.replace(load_sampling(args.target), **given)
    target, draft_model, tokenizer = load_pair(
        args.target, args.drafter, args.dtype, mesh_of(args.devices, args.target)
    )
    if tokenizer is None:
        raise ValueError(f"{args.target}: no tokenizer.json, which a chat needs; fetch the file too")

    def begin() -> Conversation:
        return Conversation(
            target,
            draft_model,
            tokenizer,
            system=args.system,
            sampling=sampling,
            draft_length=args.draft_length,
            max_new_tokens=args.max_new_tokens,
            thinking=args.thinking,
            empty_thought=args.empty_thought,
            key=jax.random.key(args.seed),
        )

    whole_number("--max-new-tokens", args.max_new_tokens, least=1)
    begin().check()
    return begin


def run(begin: Callable[[], Conversation], args: argparse.Namespace) -> None:
    out, conversation, shows_thoughts = sys.stdout, begin(), args.show_thoughts
    for line in lines(out):
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/help":
                print(DESCRIPTION.partition("commands,")[2].partition("\n")[2], file=out)
            case "/reset":
                conversation = begin()
            case "/thoughts":
                shows_thoughts = not shows_thoughts
                print(f"(thoughts are {'shown' if shows_thoughts else 'hidden'})", file=out)
            case text if text.startswith("/"):
                print(f"(no command {text.split()[0][:40]}; /help lists them)", file=out)
            case text:
                try:
                    answer(conversation, text, out, shows_thoughts)
                except ValueError as error:  # a control token in the text, or a full context
                    print(f"({harmless(str(error))})", file=out)


def lines(out: Any) -> Iterator[str]:
    """What the user types, until the end of the input.  A prompt is shown on terminals alone."""
    is_terminal = sys.stdin.isatty() and out.isatty()
    while True:
        if is_terminal:
            out.write("> ")
            out.flush()
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:  # discards what was typed
            out.write("\n")
            continue
        if not line:
            return
        yield line


def answer(conversation: Conversation, text: str, out: Any, shows_thoughts: bool) -> None:
    """Print the answer as it comes; Ctrl-C ends it.  Errors: ValueError as `Conversation.reply`."""
    tokenizer, dims = conversation.tokenizer, use_color(out)
    begin, end = (tokenizer.token_to_id(name) for name in (THOUGHT, END_OF_THOUGHT))
    stream, is_thought = TextStream(tokenizer), False
    rounds = conversation.reply(text)

    def write(piece: str) -> None:
        if piece and (shows_thoughts or not is_thought):
            out.write(f"{DIM}{harmless(piece)}{PLAIN}" if is_thought and dims else harmless(piece))

    with contextlib.closing(rounds), contextlib.suppress(KeyboardInterrupt):
        for last in rounds:
            for token in last.tokens[0, : last.num_emitted[0]].tolist():
                if token in (begin, end):
                    write(stream.end())
                    stream, is_thought = TextStream(tokenizer), token == begin
                else:
                    write(stream.push(token))
            out.flush()
    write(stream.end())
    out.write("\n")
    out.flush()
