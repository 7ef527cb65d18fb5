"""The HTML report of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.bench.formulas import RUN_FORMULAS
from server.bench.measure.level import LevelReport
from server.bench.output import page, plots
from server.bench.output.table import COLUMNS, LATENCIES, detail_lines, figure, number, outcome_line
from server.bench.run import RunResult


def run_page(result: RunResult, document: dict[str, Any]) -> str:
    """A page for people, from the results and the document of the same run."""
    return page.page(f"Load test of {result.endpoint.model}", _parts(result, document))


def _parts(result: RunResult, document: dict[str, Any]) -> Iterator[str]:
    yield page.note(f"{result.endpoint.base} · {document['started']}")
    yield page.warnings(result.warnings)
    for level in result.levels:
        yield page.heading(str(level.level))
        yield from level_parts(level.report)
    if any(level.records for level in result.levels):
        yield page.heading("Distributions")
        yield plots.latency_plot(result.levels)
        yield plots.timeline_plot(result.levels)
    if len(result.levels) > 1:
        yield page.heading("Sweep")
        yield plots.sweep_plot(result.levels)
    if any(level.report.river for level in result.levels):
        yield page.heading("River")
        yield plots.exit_plot(result.levels)
    yield page.heading("How the figures are computed")
    yield page.definitions(RUN_FORMULAS)
    yield page.heading("How it was measured")
    yield page.data(document, ("command", "client", "machine", "endpoint", "requests", "warmup"))


def level_parts(report: LevelReport) -> Iterator[str]:
    """Outcomes first, then the times of what completed."""
    yield page.note(f"{number(report.duration_s)} s · {outcome_line(report)}")
    yield page.warnings(report.warnings)
    rows = []
    for name, field in LATENCIES:
        values = getattr(report, field)
        cells = [figure(values, column) for column in COLUMNS]
        rows.append([name, *cells, str(values.count if values else 0)])
    yield page.table(["ms, completed requests", *COLUMNS, "n"], rows)
    for line in detail_lines(report):
        yield page.note(line)
    if report.errors:
        rows = [[name, str(n), report.error_examples[name]] for name, n in report.errors.items()]
        yield page.table(["failure", "requests", "first message"], rows)
