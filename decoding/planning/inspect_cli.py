"""`gemma4-mtp inspect`: the architecture of a size, or of a directory, as tables."""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from decoding.bench.report import table
from decoding.bench.subject import LAYOUTS
from decoding.planning.architecture import describe, models_of
from gemma4.config import FULL, SLIDING

DESCRIPTION = """\
Show what a model is made of: its layers, whose keys and values each of them reads, its parameters, and the bytes that one
token costs.  Only the configuration is read, so that every size can be inspected on any machine."""

EPILOG = """\
examples:
  gemma4-mtp inspect                       the shipped pair
  gemma4-mtp inspect 26B-A4B               a released size
  gemma4-mtp inspect DIR --drafter DIR     your own configuration, and its drafter's
  gemma4-mtp inspect E2B --json            one JSON object, a record for every layer
"""


def add_command(commands: argparse._SubParsersAction, layout: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="show the architecture of a size",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=layout,
        allow_abbrev=False,
    )
    option = command.add_argument
    option("model", metavar="SIZE|DIR", nargs="?", help=f"{', '.join(LAYOUTS)}, or a directory with config.json")
    option("--drafter", metavar="DIR", help="directory of the drafter's config.json; a released size has its own")
    option(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of what is counted (bfloat16)"
    )
    option("--json", action="store_true", help="print one JSON object and nothing else")


def prepare(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Errors: ValueError or OSError for a user's mistake."""
    models = models_of(args.model, args.drafter, args.dtype)
    return lambda: describe(models)


def run(args: argparse.Namespace, inspection: Callable[[], dict[str, Any]]) -> None:
    found = inspection()
    print(json.dumps(found) if args.json else "\n".join(lines(found)), flush=True)


def lines(found: dict[str, Any]) -> Iterator[str]:
    params = found["parameters"]
    yield (
        f"{found['name']}: {len(found['layers'])} layers of width {found['hidden_size']:,}, vocabulary "
        f"{found['vocab_size']:,}, context {found['context']:,}, sliding window {found['sliding_window']:,}"
    )
    if found["experts"]:
        count, chosen = found["experts"]["count"], found["experts"]["each_token"]
        yield f"a mixture of {count} experts a layer beside the MLP, {chosen} for each token"
    yield ""
    yield from layers(found["layers"], found["drafter"] is not None)
    yield ""
    yield from table(
        ("parameters", "count", "share"),
        [
            *((name, f"{count:,}", f"{count / params['total']:.1%}") for name, count in params["parts"].items()),
            ("together", f"{params['total']:,}", "without layer scalars"),
            *(
                ()
                if params["effective"] == params["total"]
                else [("without the per-layer table", f"{params['effective']:,}", "")]
            ),
            *(
                ()
                if params["active"] == params["effective"]
                else [("active for one token", f"{params['active']:,}", "")]
            ),
        ],
    )
    if found["model_card"]:
        yield f"the model card says {found['model_card']}"
    yield ""
    yield from bytes_of(found)
    if found["drafter"]:
        yield ""
        yield from drafter(found["drafter"])


def layers(records: list[dict[str, Any]], has_drafter: bool = False) -> Iterator[str]:
    """One row for each run of equal layers.  In `K/V` is the layer that wrote them, if it is another one."""

    def row(layer: dict[str, Any]) -> tuple[str, ...]:
        own = layer["owns_kv"]
        readers = [
            other["layer"] for other in records if own and other["kv_of"] == layer["layer"] and other is not layer
        ]
        note = ""
        if layer["is_donor"] and (readers or has_drafter):
            note = f"donor: read by {span(readers)}" if readers else "donor: read by"
            note += (" and the drafter" if readers else " the drafter") if has_drafter else ""
        written = ("its own, V = K" if layer["k_eq_v"] else "its own") if own else f"layer {layer['kv_of']}'s"
        sizes = (layer["heads"], layer["kv_heads"], layer["head_dim"], layer["mlp_width"])
        return (layer["type"], *(f"{size:,}" for size in sizes), written, note)

    rows = []
    for cells, run in itertools.groupby(records, row):
        numbers = [layer["layer"] for layer in run]
        rows.append((span(numbers), *cells))
    yield from table(("layer", "type", "heads", "K/V heads", "head", "MLP", "K/V", ""), rows, left=(0, 1, 6, 7))


def span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{len(numbers)} layers from {numbers[0]} on"


def bytes_of(found: dict[str, Any]) -> Iterator[str]:
    per_token, window = found["kv_bytes_per_token"], found["sliding_window"]
    yield f"K/V in {found['dtype']}: {per_token[FULL]:,} bytes a token in full layers, as long as the text grows;"
    yield (
        f"  {per_token[SLIDING]:,} in sliding layers, for the newest {window:,} tokens alone "
        f"({per_token[SLIDING] * window / 1e6:.3g} MB)"
    )
    yield (
        f"a step after {found['step_at_context'] - 1:,} tokens reads {found['step_bytes'] / 1e9:.3g} GB "
        f"and needs {found['step_flops'] / 1e9:.3g} GFLOP"
    )


def drafter(found: dict[str, Any]) -> Iterator[str]:
    head = found["head"]
    scored = f"dense, all {head['scored']:,} tokens"
    if head["kind"] == "clustered":
        scored = f"clustered, {head['scored']:,} tokens scored (the best of {head['clusters']:,} clusters)"
    yield (
        f"its drafter: {len(found['layers'])} layers of width {found['hidden_size']:,}, {found['parameters']:,} parameters, "
        f"head {scored}"
    )
    yield from layers(found["layers"])
    yield f"a draft step reads {found['step_bytes'] / 1e6:.3g} MB and needs {found['step_flops'] / 1e9:.3g} GFLOP"
