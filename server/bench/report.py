"""A comparison as tables for people and as a document for programs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from river_vllm import __version__
from server.bench.figures import METRICS, Report, Side
from server.bench.options import CompareOptions
from server.bench.rounds import Comparison
from server.cli.output import number

FORMAT = 2
"""Version of the document, raised when a field changes its meaning."""


def print_report(
    console: Console, options: CompareOptions, comparison: Comparison, report: Report
) -> None:
    """Print both sides with their failures, the ratios, the verdict."""
    for name, side in report.sides.items():
        endpoint = comparison.endpoints[name]
        console.print(f"{name}: {endpoint.base} · model {endpoint.model}", markup=False)
        for line in _side_lines(side):
            console.print(f"   {line}", markup=False)
    table = Table("figure", "A", "B", "speed-up of B", "interval", "rounds")
    for column in table.columns[1:]:
        column.justify = "right"
    for ratio in report.ratios:
        table.add_row(
            f"{ratio.metric}, {ratio.unit}",
            number(ratio.a, 2),
            number(ratio.b, 2),
            f"{number(ratio.median, 3)}×",
            f"{number(ratio.low, 3)} … {number(ratio.high, 3)}",
            str(len(ratio.rounds)),
        )
    console.print(table)
    settings = options.comparison
    console.print(
        f"median ratio of {report.rounds_counted} of {report.rounds} rounds, "
        f"{settings.block or settings.concurrency} requests per side and round, concurrency "
        f"{settings.concurrency}, {100 * settings.confidence:g} % bootstrap interval"
    )
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for verdict in report.verdicts:
        console.print(f"[red]failed:[/red] {escape(verdict)}")


def _side_lines(side: Side) -> Iterator[str]:
    yield f"{side.sent} sent, {side.completed} completed, {side.failed} failed"
    for error, count in side.errors.items():
        yield f"{count} × {error}"
    for name, found in side.percentiles.items():
        figures = ", ".join(f"{p} {number(value)}" for p, value in found.items())
        yield f"{name}: {figures} {METRICS[name].unit}"
    if river := side.river:
        parts = [f"{river.tokens} decode tokens"]
        if river.mean_exit_layer is not None:
            parts.append(f"mean exit layer {river.mean_exit_layer:.2f} of {river.num_layers}")
        if river.held:
            parts.append(f"{river.held} held")
        if river.acceptance is not None:
            parts.append(f"acceptance {river.acceptance:.1%}")
        yield f"river: {', '.join(parts)}"


def document(
    options: CompareOptions, comparison: Comparison, report: Report, started: datetime
) -> dict[str, Any]:
    """The comparison as JSON, without single requests; its command line never holds keys."""
    return {
        "kind": "compare",
        "format": FORMAT,
        "client": {"version": __version__, "python": platform.python_version()},
        "machine": {"host": platform.node(), "platform": platform.platform()},
        "command": ["river-vllm", *sys.argv[1:]],
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "options": options.model_dump(mode="json", exclude={"output"}),
        "endpoints": {
            name: {"url": endpoint.base, "model": endpoint.model}
            for name, endpoint in comparison.endpoints.items()
        },
        "interrupted": comparison.interrupted,
        **asdict(report),
    }
