"""`gemma4-mtp oracle dump`, `check` and `mutants`: arguments, help, exit codes."""

import argparse
import functools
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gemma4.progress
from decoding.oracle.cases import CASES
from decoding.oracle.compare import Report, Status, check, read_theirs
from decoding.oracle.engine import OracleError
from decoding.oracle.golden import Dump, dump, read_dump
from decoding.oracle.live import check_adapter
from decoding.oracle.record import STAGES
from decoding.oracle.table import as_json, lines

AGREES, DIFFERS = 0, 1
KNOWN_BUGS = "decoding.oracle.known_bugs"

DESCRIPTION = """\
The correct value of every named tensor of Gemma 4 and its drafter, for authors of other engines.  `dump` writes tiny
checkpoints of the five layouts, inputs, and the expected tensors of every stage; `check` compares your tensors with them and
prints the first difference.  tutorials/reference/oracle_format.md explains the files.  `mutants` lists the known bugs of other
engines, with which `check --diagnose` compares yours; tutorials/reference/known_bugs.md has them as a table.

`dump` takes one to four minutes, and so does `check --adapter` without DIR, which dumps first; `check --diagnose` takes some
minutes more if something differs.  --case and --stage shorten them all."""

EPILOG = """\
examples:
  gemma4-mtp oracle dump --out golden
  gemma4-mtp oracle check golden mine.safetensors                a file with tensors such as E2B/forward/logits
  gemma4-mtp oracle check golden mine/ --case E2B --stage forward --stage draft
  gemma4-mtp oracle check golden --adapter my_module:load        a Python implementation, live
  gemma4-mtp oracle check --adapter decoding.oracle.adapters.hf:load --json
  gemma4-mtp oracle check golden mine/ --diagnose                name the known bug, too
  gemma4-mtp oracle mutants rope-turns-every-pair                one known bug: where it was reported, its fix, its change

One unit of error is the tolerance.  exit codes: 0 all given tensors agree and no required one is missing; 1 something differs
or is missing; 2 a mistake in the arguments, or in the files or the adapter that they name.
"""


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    """`oracle` and its three commands."""
    kind = {"formatter_class": layout, "allow_abbrev": False}
    oracle = commands.add_parser("oracle", help="check another engine", description=DESCRIPTION, epilog=EPILOG, **kind)
    actions = oracle.add_subparsers(dest="action", metavar="ACTION", required=True)
    what = "write checkpoints, inputs and expected tensors (one to four minutes)"
    write = actions.add_parser("dump", help=what, epilog=EPILOG, **kind)
    write.add_argument(
        "--out", metavar="DIR", type=os.path.expanduser, required=True, help="a directory that is new or empty"
    )
    look = actions.add_parser("check", help="compare an engine's tensors with a dump", epilog=EPILOG, **kind)
    where = functools.partial(look.add_argument, nargs="?", type=os.path.expanduser)
    where("dump", metavar="DIR", help="a dump; optional with --adapter")
    where("theirs", metavar="THEIRS", help="a safetensors file, or a directory of such files")
    look.add_argument("--adapter", metavar="MODULE:NAME", help="run a Python implementation in place of THEIRS")
    look.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    look.add_argument("--diagnose", action="store_true", help="if something differs, name the known bug (some minutes)")
    look.add_argument("--every-layer", action="store_true", help="print a line for each layer, also if all agree")
    bugs = actions.add_parser("mutants", help="list known bugs of other engines", epilog=EPILOG, **kind)
    bugs.add_argument("names", nargs="*", metavar="NAME", help="describe this one in full")
    bugs.add_argument("--confusion", action="store_true", help="diagnose them all and print the table (minutes)")
    for command in (write, look):
        command.add_argument("--quiet", action="store_true", help="show no progress on a terminal")
        several = functools.partial(command.add_argument, action="append", default=[])
        several("--case", metavar="CASE", help=f"only this one, or these, of {', '.join(CASES)}")
        several("--stage", metavar="STAGE", help=f"only this one, or these, of {', '.join(STAGES)}")


def run(args: argparse.Namespace) -> int:
    """The exit code.  Errors: OracleError, a ValueError, for every mistake that a user can make.

    Modules that need the folder of known bugs are imported only where a command uses it.
    """
    if args.action == "mutants":
        check_known_bugs("mutants")
        from decoding.oracle.known_bugs_page import print_mutants

        print_mutants(args.names, with_confusion=args.confusion)
        return AGREES
    check_choices("--case", args.case, CASES)
    check_choices("--stage", args.stage, STAGES)
    args.case, args.stage = list(dict.fromkeys(args.case)), list(dict.fromkeys(args.stage))
    if args.action == "dump":
        write(args, args.out)
        print(f"{args.out}: {', '.join(args.case or CASES)}")
        return AGREES
    if args.diagnose:
        check_known_bugs("--diagnose")
    report = report_of(args)
    if not args.json:
        print("\n".join(lines(report, every_layer=args.every_layer)), flush=True)  # a diagnosis takes minutes
    differs = any(result.status is Status.DIFFERS for result in report.results)
    diagnosis = None
    if args.diagnose and differs:
        from decoding.oracle.diagnose import diagnose_report

        with gemma4.progress.progress("comparing with the known bugs"):
            diagnosis = diagnose_report(report)
    if args.json:
        print(json.dumps(as_json(report) | ({"diagnosis": diagnosis.as_dict()} if diagnosis else {})))
    elif diagnosis:
        print(f"\n{diagnosis}")
    return AGREES if report.agrees else DIFFERS


def check_known_bugs(what: str) -> None:
    """Errors: OracleError if the folder of known bugs is absent.  Only `mutants` and `check --diagnose` need it."""
    found = importlib.util.find_spec(KNOWN_BUGS)
    if found is None or found.origin is None:  # absent, or a folder without code
        raise OracleError(
            f"{what}: expected the package {KNOWN_BUGS}, which is not part of this installation; install gemma4-mtp again, "
            "or use `oracle dump` and `oracle check` without --diagnose"
        )


def write(args: argparse.Namespace, directory: str | os.PathLike) -> None:
    with gemma4.progress.progress("computing the expected tensors"):
        dump(directory, args.case or tuple(CASES), args.stage or tuple(STAGES))


def report_of(args: argparse.Namespace) -> Report:
    if (args.theirs is None) == (args.adapter is None):
        got = "neither" if args.adapter is None else "both"
        raise OracleError(f"expected tensors to check, either DIR THEIRS or --adapter MODULE:NAME, got {got}")
    if args.adapter is None:
        golden = known(read_dump(args.dump), args.case)
        theirs = read_theirs(Path(args.theirs))
        return check(golden, theirs, cases=args.case, stages=args.stage, source=args.theirs)
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.dump
        if directory is None:
            directory = Path(scratch) / "dump"
            write(args, directory)
        golden = known(read_dump(directory), args.case)
        return check_adapter(golden, args.adapter, cases=args.case, stages=args.stage, on_stage=progress)


def known(golden: Dump, cases: list[str]) -> Dump:
    """Errors: OracleError if a case that was asked for is not in this dump."""
    check_choices("--case", cases, golden.manifest["cases"])
    return golden


def check_choices(option: str, given: list[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise OracleError(f"{option} {name}: expected one of {', '.join(known)}")


def progress(name: str) -> None:
    if gemma4.progress.is_shown():
        print(f"\r\x1b[K{name}\r", end="", file=sys.stderr, flush=True)
