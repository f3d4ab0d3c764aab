"""A report as a table, and as JSON."""

import itertools
from collections.abc import Iterator
from typing import Any

from decoding.oracle.compare import Report, Result, Status

HEADER = ("case", "stage", "where", "tensors", "worst error", "verdict")


def lines(report: Report, *, every_layer: bool = False) -> Iterator[str]:
    """One line a stage; one for each layer, step and round of stages in which something differs (or of all)."""
    rows = [HEADER, *itertools.chain.from_iterable(stage_rows(report, *key, every_layer) for key in stages_of(report))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    for case in dict.fromkeys(result.case for result in report.results):
        if first := report.first_divergence(case):
            yield f"first divergence in {case}: {first.name}, {size_of(first)}; {first.note}"
    yield from report.notes
    yield conclusion(report)


def stages_of(report: Report) -> list[tuple[str, str]]:
    return list(dict.fromkeys((result.case, result.stage) for result in report.results))


def stage_rows(report: Report, case: str, stage: str, every_layer: bool) -> Iterator[tuple[str, ...]]:
    results = [result for result in report.results if (result.case, result.stage) == (case, stage)]
    yield row(case, stage, "", results, report)
    if every_layer or any(result.status is Status.DIFFERS for result in results):
        for where in dict.fromkeys(result.where for result in results):
            here = [result for result in results if result.where == where]
            if any(result.units is not None for result in here):
                yield row("", "", where, here, report)


def row(case: str, stage: str, where: str, results: list[Result], report: Report) -> tuple[str, ...]:
    given = [result for result in results if result.units is not None]
    missing = [result.name for result in results if result.status is Status.MISSING]
    worst = max(given, key=lambda result: (result.status is Status.DIFFERS, result.units), default=None)
    is_first = where and any(result == report.first_divergence(result.case) for result in given)
    verdict = verdict_of(results) + (f", {len(missing)} missing, e.g. {missing[0]}" if missing and not where else "")
    verdict += "  <- first divergence" if is_first else ""
    return case, stage, where, f"{len(given)} of {len(results)}", size_of(worst) if worst else "", verdict


def verdict_of(results: list[Result]) -> str:
    statuses = {result.status for result in results}
    return next(status.value for status in (Status.DIFFERS, Status.AGREES, *Status) if status in statuses)


def size_of(result: Result) -> str:
    return f"{result.units:.2g} units"


def conclusion(report: Report) -> str:
    statuses = [result.status for result in report.results]
    agree, differ, missing = map(statuses.count, (Status.AGREES, Status.DIFFERS, Status.MISSING))
    found = f"{agree} tensors agree, {differ} differ, {missing} required are missing"
    if report.agrees:
        return f"agrees: {found}"
    if differ:
        return f"differs: {found}"
    return f"incomplete: {found}; --stage and --case narrow what is required"


def as_json(report: Report) -> dict[str, Any]:
    cases = list(dict.fromkeys(result.case for result in report.results))
    firsts = {case: first.name for case in cases if (first := report.first_divergence(case))}
    return {
        "agrees": report.agrees,
        "first_divergence": firsts,
        "stages": [
            {"case": case, "stage": stage, "verdict": verdict_of(results)}
            for case, stage in stages_of(report)
            if (results := [result for result in report.results if (result.case, result.stage) == (case, stage)])
        ],
        "tensors": [
            {"name": it.name, "status": it.status.value, "units": it.units, "note": it.note} for it in report.results
        ],
        "notes": list(report.notes),
    }
