"""Corrupted input for the command: `python -m tests.fuzz --cases 1000 --seed 0` runs that many and prints counts.

Each case spoils one thing of a valid call, drawn from a seed of its own: a file of a checkpoint or a golden set, a prompt, an
argument.  The command must then end with one line on standard error and exit code 2, or do its work as if nothing was wrong:
no traceback, no 20 seconds of computing, no gigabyte above the valid call, and no file read outside the directory.
`tests/test_fuzz.py` runs the first cases of each kind.
"""

import argparse
import collections
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import TypeCheckError

import gemma4
from decoding.cli import main
from decoding.oracle.golden import dump
from tests.models import write_pair

MAX_SECONDS, MAX_BYTES = 20, 10**9
TEXT = "In the beginning"
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e-45, 1e39, 1e308),
    *(
        "",
        "x",
        "gemma4_text",
        "../secret",
        "\0",
        "9" * 5000,
        "東京",
        [],
        [0],
        [1, 106],
        ["x"] * 3,
        [None],
        {},
        {"a": 1},
    ),
    *([[[[]]]], {"rope_type": "yarn"}, float("nan"), float("inf"), -float("inf"), [1e400], "sliding_attention"),
]


class Place:
    """A valid pair in both formats, and a golden set, of which each case spoils a copy.  Beside a copy lies a secret file."""

    def __init__(self, root: Path):
        self.root, self.valid = root, root / "valid"
        write_pair(self.valid / "hf")
        shutil.copytree(self.valid / "hf", self.valid / "orbax")
        shutil.rmtree(self.valid / "orbax" / "target")
        gemma4.save(gemma4.load(self.valid / "hf" / "target"), self.valid / "orbax" / "target")
        shutil.copy(self.valid / "hf/target/tokenizer.json", self.valid / "orbax/target")
        dump(self.valid / "golden", ("E2B",), ("rope",))

    def copy(self, kind: str) -> Path:
        there = self.root / "case"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(self.valid / kind, there / kind)
        weights = self.valid / "hf" / "target" / "model.safetensors"
        os.link(weights, there / "secret.safetensors")
        return there / kind


# -- damage of a file ----------------------------------------------------------------------------------------------------


def spoil_json(file: Path, rng: random.Random) -> None:
    """Another value, or none, at a random place of the object."""
    content = node = json.loads(file.read_text())
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.3:
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = rng.choice(VALUES)
            break
        node = node[key]
    file.write_text(json.dumps(content))


def spoil_bytes(file: Path, rng: random.Random) -> None:
    """Truncated, longer, flipped, or of something else."""
    content = bytearray(file.read_bytes())
    match rng.randrange(6):
        case 0:
            content = content[: rng.randrange(len(content) + 1)]
        case 1:
            content += rng.randbytes(rng.randint(1, 100))
        case 2:
            content = bytearray(
                rng.choice([b"", b"{}", b"[]", b"null", b"[" * 10**5, b"version https://git-lfs", b"\xff\xfe"])
            )
        case _:
            for _ in range(rng.choice([1, 3, 100])):
                if content:
                    content[rng.randrange(min(len(content), rng.choice([64, 4096, 10**9])))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def spoil_file(file: Path, rng: random.Random) -> None:
    """Something that is no file."""
    file.unlink()
    match rng.randrange(5):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to("nowhere")
        case 3:
            file.touch()


def spoil_header(file: Path, rng: random.Random) -> None:
    """Of a safetensors file: another value in its JSON, or another length."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.2:
        file.write_bytes(struct.pack("<Q", rng.choice([0, 1, length - 1, length + 8, 2**40, 2**64 - 1])) + content[8:])
        return
    entry = header[rng.choice(sorted(header))]
    entry[rng.choice(sorted(entry))] = rng.choice(
        [*VALUES, [0, 4], [8, 4], ["F32"], "I64", "F64", "F8_E4M3", [2**40, 2**40]]
    )
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


ANY: list[Callable[[Path, random.Random], None]] = [spoil_json, spoil_bytes, spoil_file]


# -- cases ---------------------------------------------------------------------------------------------------------------


def generate(pair: Path, *arguments: str) -> list[str]:
    sizes = ["--max-new-tokens=3", "--draft-length=2", "--json"]
    return ["generate", f"--target={pair / 'target'}", f"--drafter={pair / 'drafter'}", *sizes, *(arguments or [TEXT])]


def config(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("hf")
    rng.choice([*ANY, spoil_json, spoil_json])(pair / rng.choice(["target", "drafter"]) / "config.json", rng)
    return generate(pair)


def generation_config(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("hf")
    file = pair / "target" / "generation_config.json"
    settings = {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 4,
        "top_p": 0.9,
        "eos_token_id": [1],
        "suppress_tokens": [3],
    }
    file.write_text(json.dumps(settings))
    rng.choice(ANY)(file, rng)
    return generate(pair)


def tokenizer(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("hf")
    rng.choice(ANY)(pair / "target" / "tokenizer.json", rng)
    return generate(pair)


def weights(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("hf")
    file = pair / rng.choice(["target", "drafter"]) / "model.safetensors"
    rng.choice([spoil_bytes, spoil_file, spoil_header, spoil_header])(file, rng)
    return generate(pair)


def index(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("hf")
    target, (shard,) = pair / "target", rng.sample(["a.safetensors", "b"], 1)
    content = (target / "model.safetensors").read_bytes()
    keys = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    (target / "model.safetensors").rename(target / shard)
    placed = {key: shard for key in keys if key != "__metadata__"}
    if rng.random() < 0.5:
        outside = ["../../secret.safetensors", str(pair.parent / "secret.safetensors"), "x/../../../secret.safetensors"]
        placed[rng.choice(sorted(placed))] = rng.choice([*outside, "config.json", ".", "", "\0", 3])
    file = target / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    if rng.random() < 0.7:
        rng.choice(ANY)(file, rng)
    return generate(pair)


def orbax(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("orbax")
    files = sorted(path for path in (pair / "target").rglob("*") if path.is_file() and path.name != "tokenizer.json")
    if rng.random() < 0.7:
        (pair / "target" / "gemma4-mtp.sha256.json").unlink()
        files = [file for file in files if file.exists()]
    rng.choice([spoil_bytes, spoil_file])(rng.choice(files), rng)
    return generate(pair)


def golden(place: Place, rng: random.Random) -> list[str]:
    directory = place.copy("golden")
    theirs = shutil.copytree(directory / "E2B", directory.parent / "theirs")
    for file in theirs.glob("*.safetensors"):
        if "expected" not in file.name:
            file.unlink()
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    match rng.randrange(3):
        case 0:
            rng.choice(ANY)(directory / "manifest.json", rng)
        case 1:
            rng.choice([spoil_bytes, spoil_file])(rng.choice(files), rng)
        case _:
            rng.choice([spoil_bytes, spoil_file, spoil_header])(next(theirs.glob("*.safetensors")), rng)
    return ["oracle", "check", str(directory), str(theirs), "--json"]


def prompt(place: Place, rng: random.Random) -> list[str]:
    pair = place.copy("hf")
    file = pair / "prompt.txt"
    file.write_bytes(
        rng.choice([rng.randbytes(rng.randint(0, 40)), bytes(10**6), TEXT.encode() * 10**4, b"<bos>\n", TEXT.encode()])
    )
    ids = ",".join(str(rng.choice([0, 1, 2, 319, 320, -1, 2**31, 2**70])) for _ in range(rng.randint(0, 200)))
    text = "".join(
        chr(rng.choice([0x20, 0x41, 0x1F642, 0x202E, 0x1B, 0xD800, 0x7F])) for _ in range(rng.randint(0, 30))
    )
    if rng.random() < 0.3:
        spoil_file(file, rng)
    return generate(pair, *rng.choice([[f"--prompt-file={file}"], [f"--prompt-ids={ids}"], ["--", text], [TEXT, text]]))


OPTIONS = {
    "generate": "draft-length max-new-tokens temperature top-k top-p seed dtype loop acceptance convention min-p stop "
    "repetition-penalty frequency-penalty presence-penalty logit-bias prompt-ids prompt-file chat target drafter",
    "bench": "batch prompts scale preset draft-lengths threads prompt-tokens new-tokens "
    "prefill-tokens runs contexts accept-rate",
    "oracle": "case stage adapter frobnicate",
}
WORDS = [
    *(
        "",
        "-1",
        "0",
        "1e-9",
        "nan",
        "inf",
        "-inf",
        "99999999",
        "999999999999",
        "1e400",
        "x",
        "\0",
        "~",
        "~nobody/x",
        "/",
    ),
    *(
        "/dev/zero",
        "../..",
        "1-99999999",
        "1,,2",
        "=",
        "5=",
        "=5",
        "5=nan",
        "os:system",
        "9" * 5000,
        "١",
        "1_0",
        " 1",
        "0x10",
    ),
]


def arguments(place: Place, rng: random.Random) -> list[str]:
    """Options that cannot be, of every command."""
    command, pair = rng.choice(sorted(OPTIONS)), place.valid / "hf"
    start = {"generate": generate(pair, TEXT), "bench": ["bench"], "oracle": ["oracle", "check", str(pair / "none")]}[
        command
    ]
    if command == "bench":  # valid calls of it take long
        start += ["--runs=0"]
    count = rng.randint(1, 3)
    return start + [f"--{rng.choice(OPTIONS[command].split())}={rng.choice(WORDS)}" for _ in range(count)]


KINDS = (config, generation_config, tokenizer, weights, index, orbax, golden, prompt, arguments)


# -- running -------------------------------------------------------------------------------------------------------------

_opened: list[str] = []
_is_watching = False


def _watch(event: str, given: tuple) -> None:
    if _is_watching and event == "open" and isinstance(given[0], (str, bytes)):
        _opened.append(os.fsdecode(given[0]))


def run_case(place: Place, number: int, seed: int = 0) -> tuple[str, str]:
    """(kind, what is wrong; empty if nothing is).  The same numbers give the same case."""
    global _is_watching
    rng = random.Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    call = kind(place, rng)
    out, err = io.StringIO(), io.StringIO()
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    _opened.clear()
    _is_watching = True
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(call)
    except BaseException as error:  # SystemExit, and panics of `tokenizers`, too
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(
            error, TypeCheckError
        ):  # pytest checks types; elsewhere the code behind it finds the mistake itself
            return kind.__name__, ""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return (
            kind.__name__,
            f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {error!s:.200}; {call!r:.300}",
        )
    finally:
        _is_watching = False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    lines = [line for line in err.getvalue().splitlines() if line.startswith("gemma4-mtp: error: ")]
    wrong = {
        f"exit code {code}": code not in (0, 2) and not (kind is golden and code == 1),
        f"error lines {len(lines)}: {err.getvalue()[:200]!r}": (code == 2) != (len(lines) == 1),
        f"a traceback: {err.getvalue()[:200]!r}": "Traceback" in err.getvalue(),
        f"{time.process_time() - began:.0f} s": time.process_time() - began > MAX_SECONDS,
        f"{grown / 1e9:.1f} GB more": grown > MAX_BYTES,
        "read outside its directory": any("secret" in name for name in _opened),
    }
    found = "; ".join(what for what, applies in wrong.items() if applies)
    return kind.__name__, f"{found}; {call!r:.300}" if found else ""


def begin(root: Path) -> Place:
    sys.addaudithook(_watch)
    main.keep_compiled_code = lambda: None
    return Place(root)


def fuzz(cases: int, seed: int) -> int:
    """The number of failures, each of which is printed."""
    counts, failures = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as root:
        place = begin(Path(root))
        run_case(place, 7, seed)
        for number in range(cases):
            faulthandler.dump_traceback_later(600, exit=True)  # shows where a case hangs
            kind, wrong = run_case(place, number, seed)
            if number % 100 == 99:
                print(f"{number + 1} cases, {failures.total()} failures", flush=True)
            counts[kind] += 1
            if wrong:
                failures[kind] += 1
                print(f"case {number} ({kind}): {wrong}", flush=True)
    for kind, count in counts.items():
        print(f"{kind:18} {count:5} cases, {failures[kind]} failures")
    return failures.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(bool(fuzz(given.cases, given.seed)))
