"""A report as text for the terminal, as JSON, JUnit XML, a Gradescope result, and as lines of a CSV file."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from decoding.course.grade import CheckResult, Report
from gemma4.shadowing import one_line

FORMAT = "course-report/1"
PRINTED_LINES = 5


def as_text(report: Report) -> str:
    """For a terminal: a line a check, then what the mistakes look like."""
    lines = [f"assignment {report.assignment} · {report.title}    {report.submission}"]
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        points = f"{check.points} / {check.of}" if check.of else ""
        lines.append(f"  {check.name:<{width}}  {check.status:<11}  {points:<6} {one_line(check.message)}".rstrip())
    if report.ended != "ok":
        lines.append(f"  {one_line(report.ended)}")
    lines += _mistakes(report)
    lines += [f"  note: {one_line(note)}" for note in report.notes]
    if report.printed.strip():
        lines.append("  your code printed:")
        lines += [f"    {one_line(line)}" for line in report.printed.splitlines()[:PRINTED_LINES]]
    lines.append(f"  {report.points} of {report.of} points, {report.seconds:.1f} s")
    return "\n".join(lines)


def _mistakes(report: Report) -> list[str]:
    lines = []
    for mistake in report.misconceptions:
        what = "This may be" if mistake.is_one_of else "This looks like"
        lines += [f"  {what} {mistake.name}:", f"    {mistake.says}"]
    if report.unnamed:
        lines.append("  No known misconception explains all of it; the first difference of each check is above.")
    return lines


def as_json(report: Report) -> dict[str, Any]:
    return {"format": FORMAT, **dataclasses.asdict(report), "points": report.points, "of": report.of}


def as_junit(reports: Sequence[Report]) -> str:
    """One test suite a submission, one test case a check."""
    root = ET.Element("testsuites")
    for report in reports:
        failures = sum(check.status != "passed" for check in report.checks)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_xml(f"a{report.assignment} {report.submission}"),
            tests=str(len(report.checks)),
            failures=str(failures),
            errors="0",
            time=str(report.seconds),
        )
        for check in report.checks:
            case = ET.SubElement(suite, "testcase", classname=f"a{report.assignment}", name=check.name)
            if check.status != "passed":
                ET.SubElement(case, "failure", message=_xml(_told(report, check)))
        ET.SubElement(suite, "system-out").text = _xml(report.printed)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_gradescope(report: Report) -> dict[str, Any]:
    """The content of results.json.  Hidden checks are shown once grades are published."""
    return {
        "score": report.points,
        "execution_time": report.seconds,
        "output": as_text(report),
        "output_format": "text",
        "stdout_visibility": "hidden",
        "extra_data": {"report": as_json(report)},
        "tests": [
            {
                "name": f"{check.name}: {check.what}",
                "score": check.points,
                "max_score": check.of,
                "status": "passed" if check.status == "passed" else "failed",
                "output": _told(report, check) if check.status != "passed" else "",
                "tags": [mistake.name for mistake in report.misconceptions],
                "visibility": "visible" if check.is_public else "after_published",
            }
            for check in report.checks
        ],
    }


def as_csv(reports: Sequence[Report], failures: Sequence[tuple[str, str]] = ()) -> str:
    """A line a submission; `failures` are those that could not be run, with the reason."""
    out = io.StringIO()
    names = list(dict.fromkeys(check.name for report in reports for check in report.checks))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["submission", "assignment", "points", "of", *names, "misconceptions", "unnamed", "seconds", "ended"]
    )
    for report in reports:
        points = {check.name: check.points for check in report.checks}
        mistakes = " ".join(mistake.name for mistake in report.misconceptions)
        row = [report.submission, report.assignment, report.points, report.of]
        row += [points.get(name, "") for name in names]
        writer.writerow(
            [_cell(value) for value in [*row, mistakes, report.unnamed or "", report.seconds, report.ended]]
        )
    for submission, reason in failures:
        writer.writerow([_cell(submission), "", 0, "", *[""] * len(names), "", "", "", _cell(reason)])
    return out.getvalue()


def _told(report: Report, check: CheckResult) -> str:
    sentences = [mistake.says for mistake in report.misconceptions]
    return "\n".join(filter(None, [check.message or check.status, *sentences]))


def _xml(text: str) -> str:
    """Text without the control characters that XML does not allow."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _cell(value: object) -> object:
    """A spreadsheet takes text that begins with one of these for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
