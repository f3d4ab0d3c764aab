"""Where a class stands: how many passed each check, which misconceptions were met, and wrong answers that have no name yet."""

import collections
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from decoding.course.error import CourseError
from decoding.course.report import FORMAT


def read_reports(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Reports from JSON files, or from all JSON files of a folder.  Errors: CourseError for other content."""
    reports: list[dict[str, Any]] = []
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CourseError(f"{file}: expected reports of `course grade --json`, got {error!s:.80}") from error
            for report in content if isinstance(content, list) else [content]:
                if not isinstance(report, dict) or report.get("format") != FORMAT:
                    raise CourseError(f"{file}: expected reports of `course grade --json`, with format {FORMAT!r}")
                reports.append(report)
    if not reports:
        raise CourseError("stats: expected reports of `course grade --json`, got none")
    return reports


def as_text(reports: Sequence[dict[str, Any]]) -> str:
    by_number: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        by_number.setdefault(report["assignment"], []).append(report)
    return "\n\n".join(_of_assignment(number, by_number[number]) for number in sorted(by_number))


def _of_assignment(number: str, reports: list[dict[str, Any]]) -> str:
    count = len(reports)
    full = sum(report["points"] == report["of"] for report in reports)
    mean = sum(report["points"] for report in reports) / count
    lines = [
        f"assignment {number} · {reports[0]['title']}: {count} submissions, {full} with all points, mean {mean:.1f}"
    ]
    passed = collections.Counter(c["name"] for r in reports for c in r["checks"] if c["status"] == "passed")
    for check in reports[0]["checks"]:
        lines.append(f"  {check['name']:<12} passed by {passed[check['name']]} of {count}")
    met = collections.Counter(one["name"] for report in reports for one in report["misconceptions"])
    if met:
        lines.append("  misconceptions:")
        lines += [f"    {times:>3} {name}" for name, times in met.most_common()]
    groups: dict[str, list[str]] = {}
    for report in reports:
        if report["unnamed"]:
            groups.setdefault(report["unnamed"], []).append(report["submission"])
    if groups:
        lines.append("  wrong without a name, same results together:")
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        lines += [f"    {len(names):>3} {mark}: {', '.join(sorted(names))}" for mark, names in ordered]
    ended = collections.Counter(report["ended"] for report in reports if report["ended"] != "ok")
    lines += [f"  {times} ended: {how}" for how, times in ended.most_common()]
    return "\n".join(lines)
