"""A trace from a file: what is wrong with it is said in one line."""

import copy
import json

import pytest

from decoding.trace.check import FORMAT, SCHEMA, TraceError, check_trace, read_trace
from decoding.trace.record import FORMAT as RECORDED
from tests.decoding.trace.conftest import recorded


def changed(change) -> dict:
    trace = copy.deepcopy(recorded("token")[0])
    change(trace)
    return trace


def set_at(*path, value):
    def change(trace):
        for key in path[:-1]:
            trace = trace[key]
        trace[path[-1]] = value

    return change


WRONG = {
    "another version": (
        set_at("format", value="trace/9"),
        "format: this version reads 'trace/1', got 'trace/9'; write",
    ),
    "no version": (lambda trace: trace.pop("format"), "format: this version reads 'trace/1', got None"),
    "a field is missing": (lambda trace: trace.pop("rounds"), "the object: 'rounds' is a required property"),
    "a field of a draft is missing": (
        lambda trace: trace["rounds"][1]["drafts"][2].pop("u"),
        "rounds[1].drafts[2]: 'u' is a required property",
    ),
    "a text for a number": (
        set_at("rounds", 0, "drafts", 0, "p", value="0.5"),
        "rounds[0].drafts[0].p: '0.5' is not of",
    ),
    "u is 1": (set_at("rounds", 0, "next", "u", value=1), "rounds[0].next.u: 1 is "),
    "a probability of 7": (set_at("rounds", 0, "drafts", 0, "q", value=7), "rounds[0].drafts[0].q: 7 is greater than"),
    "an unknown verdict": (
        set_at("rounds", 0, "drafts", 0, "verdict", value="kept"),
        "'kept' is not one of ['accepted'",
    ),
    "an id that is no number": (set_at("vocabulary", "x", value="y"), "vocabulary: 'x' does not match"),
    "too few places": (
        lambda trace: trace["rounds"][2]["places"].pop(),
        "rounds[2].places: expected 4 (one for each draft",
    ),
    "too many accepted": (set_at("rounds", 0, "num_accepted", value=9), "rounds[0].num_accepted: expected at most 3"),
    "too many emitted": (
        lambda trace: trace["rounds"][0].update(
            num_accepted=0, num_emitted=3, cache={"before": 5, "written": 4, "after": 8}
        ),
        "rounds[0].num_emitted: expected at most num_accepted + 1, got 3",
    ),
    "a cache that keeps too much": (
        set_at("rounds", 0, "cache", "after", value=99),
        "rounds[0].cache.after: expected ",
    ),
    "rows of verify": (
        lambda trace: trace["rounds"][0]["sees"]["full_attention"]["verify"].pop(),
        "rounds[0].sees.full_attention.verify: expected 4 rows, got 3",
    ),
    "a clustered head without clusters": (
        set_at("model", "head", value={"kind": "clustered"}),
        "model.head: 'clusters' is",
    ),
    "by block without weights": (
        set_at("settings", "acceptance", value="block"),
        "rounds[0].drafts[0]: expected weight and surplus, because acceptance is by block",
    ),
    "greedy with numbers": (
        set_at("settings", "acceptance", value="greedy"),
        "rounds[0].drafts[0].u: expected null, because acceptance is greedy, got 0.",
    ),
    "sampled without a number": (
        set_at("rounds", 2, "next", "u", value=None),
        "rounds[2].next.u: expected a number, because it is sampled, got None",
    ),
    "no drafts": (set_at("rounds", 0, "drafts", value=[]), "rounds[0].drafts: [] "),
    "an object of another kind": (set_at("settings", value=[]), "settings: [] is not of type 'object'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_trace(case):
    change, message = WRONG[case]
    with pytest.raises(TraceError) as raised:
        check_trace(changed(change))
    assert message in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_unknown_fields_are_allowed():
    check_trace(changed(lambda trace: (trace.update(mine=1), trace["rounds"][0]["drafts"][0].update(mine=[2]))))


CONTENT = {
    "not JSON": (b"<html>", "expected JSON in UTF-8"),
    "empty": (b"", "expected JSON in UTF-8"),
    "not UTF-8": (b'{"format": "\xff"}', "expected JSON in UTF-8"),
    "NaN": (b'{"format": NaN}', "with finite numbers (got NaN)"),
    "infinite": (b'{"format": 1e999}', "with finite numbers (got 1e999)"),
    "a list": (b"[1]", "expected a JSON object, got list"),
    "deep": (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
    "deep inside": (b'{"format": "trace/1", "rounds": ' + b"[" * 900 + b"]" * 900 + b"}", "is a required property"),
    "a huge number": (b'{"format": 1' + b"0" * 5000 + b"}", "expected JSON"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_content_that_is_no_trace(case, tmp_path):
    content, message = CONTENT[case]
    file = tmp_path / "trace.json"
    file.write_bytes(content)
    with pytest.raises(TraceError) as raised:
        read_trace(str(file))
    assert str(raised.value).startswith(f"{file}: ") and message in str(raised.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for file, message in (
        (tmp_path, "expected a file of JSON"),
        (tmp_path / "none", "no such file"),
        ("\0", "cannot be re"),
    ):
        with pytest.raises(TraceError, match=message):
            read_trace(str(file))
    monkeypatch.setattr("decoding.trace.check.MAX_BYTES", 10)
    (tmp_path / "large").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(TraceError, match="expected at most 0 MiB, got more"):
        read_trace(str(tmp_path / "large"))


def test_a_trace_survives_its_file(tmp_path):
    trace = recorded("token")[0]
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    assert read_trace(str(tmp_path / "trace.json")) == trace


def test_every_field_of_the_schema_is_described_or_plain():
    """The schema is valid, and names the version that is written."""
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == schema["properties"]["format"]["const"] == FORMAT == RECORDED
