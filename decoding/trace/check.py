"""A trace from a file: JSON that follows `schema.json`, and whose parts fit each other."""

import functools
import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
SCHEMA = Path(__file__).parent / "schema.json"
FORMAT = "trace/1"


class TraceError(ValueError):
    """What is wrong with a trace; shown as one line."""


def read_trace(file: str) -> dict[str, Any]:
    """Errors: TraceError that names the file, the field, what was expected and what came."""
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            raise TraceError(f"{file}: expected a file of JSON, got a directory, a device or a pipe")
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise TraceError(f"{file}: no such file; name a trace, as `gemma4-mtp trace --json FILE` writes it") from None
    except (OSError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_BYTES:
        raise TraceError(f"{file}: expected at most {MAX_BYTES >> 20} MiB, got more; record fewer tokens")
    try:
        trace = json.loads(content.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise TraceError(f"{file}: expected a trace, got JSON that is nested too deeply") from None
    except ValueError as error:
        raise TraceError(f"{file}: expected JSON in UTF-8 with finite numbers ({error})") from error
    try:
        check_trace(trace)
    except TraceError as error:
        raise TraceError(f"{file}: {error}") from None
    return trace


def _refuse(name: str) -> None:
    raise ValueError(f"got {name}")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"got {text:.40}")
    return value


def check_trace(trace: Any) -> None:
    """Errors: TraceError for the first thing that is wrong."""
    if not isinstance(trace, dict):
        raise TraceError(f"expected a JSON object, got {_brief(trace)}")
    if (version := trace.get("format")) != FORMAT:
        raise TraceError(
            f"format: this version reads {FORMAT!r}, got {_brief(version)}; write the trace in that format"
        )
    from jsonschema.exceptions import best_match

    try:
        error = best_match(_validator().iter_errors(trace))
    except RecursionError:
        raise TraceError("expected a trace, got JSON that is nested too deeply") from None
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".") or "the object"
        raise TraceError(f"{where}: {' '.join(error.message.split()):.300}")
    for number, described in enumerate(trace["rounds"]):
        _check_round(described, f"rounds[{number}]")
        _check_acceptance(described, f"rounds[{number}]", trace["settings"]["acceptance"])


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _check_round(described: dict[str, Any], where: str) -> None:
    """What a schema cannot say: lengths that belong together."""
    drafts, cache = len(described["drafts"]), described["cache"]
    facts = {
        "places": (len(described["places"]), drafts + 1, "one for each draft and one more"),
        "cache.written": (cache["written"], drafts + 1, "the newest token and all drafts"),
        "cache.after": (cache["after"], cache["before"] + described["num_emitted"], "before + num_emitted"),
    }
    for name, (got, expected, why) in facts.items():
        if got != expected:
            raise TraceError(f"{where}.{name}: expected {expected} ({why}), got {got}")
    if described["num_accepted"] > drafts:
        raise TraceError(
            f"{where}.num_accepted: expected at most {drafts}, the drafts, got {described['num_accepted']}"
        )
    if described["num_emitted"] > described["num_accepted"] + 1:
        raise TraceError(f"{where}.num_emitted: expected at most num_accepted + 1, got {described['num_emitted']}")
    for kind, seen in described["sees"].items():
        if len(seen["verify"]) != drafts + 1:
            raise TraceError(f"{where}.sees.{kind}.verify: expected {drafts + 1} rows, got {len(seen['verify'])}")


def _check_acceptance(described: dict[str, Any], where: str, acceptance: str) -> None:
    """What a rule needs, to be applied again: a number u, or none where it is greedy; by block the run's weight, too."""
    for name, judged in [(f"drafts[{i}]", drafted) for i, drafted in enumerate(described["drafts"])] + [
        ("next", described["next"])
    ]:
        if (judged["u"] is None) != (acceptance == "greedy"):
            expected = (
                "null, because acceptance is greedy" if acceptance == "greedy" else "a number, because it is sampled"
            )
            raise TraceError(f"{where}.{name}.u: expected {expected}, got {judged['u']}")
    for i, drafted in enumerate(described["drafts"]):
        if acceptance == "block" and not {"weight", "surplus"} <= drafted.keys():
            raise TraceError(f"{where}.drafts[{i}]: expected weight and surplus, because acceptance is by block")


def _brief(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
