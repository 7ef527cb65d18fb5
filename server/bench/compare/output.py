"""A comparison as a table, a document, lines and a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from server.bench.compare.ratios import CompareReport, Ratio
from server.bench.compare.rounds import Comparison
from server.bench.formulas import COMPARE_FORMULAS, RUN_FORMULAS, as_document
from server.bench.output.document import metadata, request_settings
from server.bench.output.rows import request_line
from server.bench.output.table import number, print_level, print_warnings
from server.bench.settings import CompareSettings, Target

HEADERS = ("figure", "A", "B", "speed-up of B", "interval", "rounds")


def print_comparison(
    console: Console, settings: CompareSettings, comparison: Comparison, report: CompareReport
) -> None:
    """Both sides with their failures, the ratios, the verdict."""
    for side, endpoint in comparison.endpoints.items():
        console.print(f"{side}: {endpoint.base} · model {endpoint.model}", markup=False)
    for side, level in report.sides.items():
        print_level(console, side, level)
    console.print()
    table = Table(*HEADERS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in ratio_rows(report):
        table.add_row(*row)
    console.print(table)
    console.print(summary_line(settings, report))
    print_warnings(console, report.warnings)
    for verdict in report.verdicts:
        console.print(f"[red]failed:[/red] {verdict}")


def summary_line(settings: CompareSettings, report: CompareReport) -> str:
    return (
        f"median ratio of {report.rounds_counted} of {report.rounds} rounds, "
        f"{settings.block} requests per side and round, concurrency {settings.concurrency}, "
        f"{settings.confidence:.0%} bootstrap interval"
    )


def ratio_rows(report: CompareReport) -> Iterator[list[str]]:
    for ratio in report.ratios:
        yield [
            f"{ratio.metric}, {ratio.unit}",
            number(ratio.a, 2),
            number(ratio.b, 2),
            f"{number(ratio.median, 3)}×",
            f"{number(ratio.low, 3)} … {number(ratio.high, 3)}",
            str(len(ratio.rounds)),
        ]


def compare_document(
    settings: CompareSettings,
    comparison: Comparison,
    report: CompareReport,
    command: list[str],
    started: datetime,
) -> dict[str, Any]:
    """The whole of a comparison, but for its single requests."""
    targets = zip(comparison.endpoints.items(), (settings.a, settings.b), strict=True)
    return metadata("compare", command, started) | {
        "interrupted": comparison.interrupted,
        "endpoints": {
            side: {"url": endpoint.base, "model": endpoint.model, "river": _river(target)}
            for (side, endpoint), target in targets
        },
        "requests": request_settings(settings.requests),
        "concurrency": settings.concurrency,
        "block": settings.block,
        "wake": settings.wake,
        "confidence": settings.confidence,
        "gates": {gate.metric: gate.least for gate in settings.gates},
        "client_load": asdict(comparison.client) if comparison.client else None,
        **asdict(report),
        "formulas": as_document(RUN_FORMULAS + COMPARE_FORMULAS),
    }


def ratio_lines(ratios: list[Ratio]) -> list[dict[str, Any]]:
    """For CSV: a line per figure."""
    return [asdict(ratio) | {"rounds": len(ratio.rounds)} for ratio in ratios]


def request_lines(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Every measured request in the order of asking."""
    runs = [(n, s, item.sides[s]) for n, item in enumerate(comparison.rounds) for s in item.sides]
    origin = min((r.sent for _, _, run in runs for r in run.records), default=0.0)
    for number_, side, run in runs:
        for record in run.records:
            yield request_line(record, origin, round=number_, side=side)


def _river(target: Target) -> dict[str, Any] | None:
    return dict(target.river) if target.river is not None else None
