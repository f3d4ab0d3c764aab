"""A report in each of its forms."""

import csv
import io
import json
import xml.etree.ElementTree as ET

from decoding.course.grade import CheckResult, Named, Report
from decoding.course.report import as_csv, as_gradescope, as_json, as_junit, as_text
from decoding.course.stats import as_text as stats_of


def a_report(submission="ada", **changes) -> Report:
    fields = dict(
        assignment="09", title="Accept and reject", submission=submission,
        checks=[
            CheckResult("example", "the page's example", True, "passed", 1, 1),
            CheckResult("values", "many rows", False, "failed", 0, 3, "decide: <num_accepted> is 3\x00\x1b[31m"),
        ],
        misconceptions=[Named("residual-forgotten", "After a rejection & so on.")],
        ended="ok", unnamed=None, seconds=1.5, notes=[], printed="hello\x07\n",
    )  # fmt: skip
    return Report(**{**fields, **changes})


def test_text_has_the_sentence_and_no_control_characters():
    text = as_text(a_report())
    assert "After a rejection & so on." in text and "1 of 4 points" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_json_is_plain_and_complete():
    content = json.loads(json.dumps(as_json(a_report())))
    assert content["format"] == "course-report/1" and (content["points"], content["of"]) == (1, 4)
    assert content["checks"][1]["status"] == "failed" and content["misconceptions"][0]["name"] == "residual-forgotten"


def test_junit_is_xml_with_a_case_a_check():
    suite = ET.fromstring(as_junit([a_report(), a_report("bob")]))
    assert [(s.get("tests"), s.get("failures")) for s in suite] == [("2", "1")] * 2
    failure = suite[0].find("testcase/failure")
    assert failure is not None and "After a rejection & so on." in failure.get("message", "")


def test_gradescope_has_its_fields():
    result = json.loads(json.dumps(as_gradescope(a_report())))
    assert (result["score"], result["stdout_visibility"]) == (1, "hidden")
    shown = [(t["visibility"], t["status"], t["score"], t["max_score"]) for t in result["tests"]]
    assert shown == [("visible", "passed", 1, 1), ("after_published", "failed", 0, 3)]


def test_csv_has_a_line_a_submission_and_no_formula():
    lines = list(csv.DictReader(io.StringIO(as_csv([a_report(), a_report("=1+1")], [("eve", "the file is empty")]))))
    assert [line["submission"] for line in lines] == ["ada", "'=1+1", "eve"]
    assert [line["points"] for line in lines] == ["1", "1", "0"] and lines[2]["ended"] == "the file is empty"


def test_stats_count_misconceptions_and_group_what_has_no_name():
    unnamed = [
        as_json(a_report(name, misconceptions=[], unnamed=mark))
        for name, mark in (("x", "aa"), ("y", "bb"), ("z", "aa"))
    ]
    text = stats_of([as_json(a_report()), *unnamed])
    assert "4 submissions, 0 with all points, mean 1.0" in text
    assert "1 residual-forgotten" in text and text.index("2 aa: x, z") < text.index("1 bb: y")
