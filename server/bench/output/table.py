"""The figures of a level on the terminal, failures beside latencies."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from server.bench.load import Level
from server.bench.measure.level import LevelReport, Throughput
from server.bench.measure.statistics import Distribution
from server.bench.run import LevelResult, RunResult

_WIDTH = 120
"""Columns where the output is no terminal."""

LATENCIES = (
    ("TTFT", "ttft_ms"),
    ("ITL", "itl_ms"),
    ("TPOT", "tpot_ms"),
    ("E2E", "e2e_ms"),
    ("chunk gap", "chunk_gap_ms"),
)
"""Shown name and field of the report."""

COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def make_console() -> Console:
    """Standard output, not folded to 80 columns when it goes to a file."""
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, soft_wrap=True)


def number(value: float | None, digits: int = 1) -> str:
    """For people: a dash where there is no figure."""
    return "–" if value is None else f"{value:,.{digits}f}"


def figure(group: Distribution | Throughput | None, name: str, digits: int = 1) -> str:
    """A field of a group that may be missing as a whole."""
    return number(getattr(group, name, None), digits)


def print_run(console: Console, result: RunResult) -> None:
    """All levels, the summary of a sweep, and the warnings."""
    console.print(f"{result.endpoint.base} · model {result.endpoint.model}", markup=False)
    for level in result.levels:
        print_level(console, level.level, level.report)
    if len(result.levels) > 1:
        console.print(sweep_table(result.levels))
    print_warnings(console, result.warnings)


def print_level(console: Console, level: Level | str, report: LevelReport) -> None:
    """One level: what became of the requests, then the times of those that completed."""
    console.print()
    console.print(f"[bold]{level}[/bold] · {number(report.duration_s)} s · {outcome_line(report)}")
    console.print(latency_table(report))
    for line in detail_lines(report):
        console.print(line, markup=False)
    print_warnings(console, report.warnings)


def print_warnings(console: Console, warnings: list[str]) -> None:
    for warning in warnings:
        console.print("[yellow]warning:[/yellow]", warning.replace("[", r"\["))


def outcome_line(report: LevelReport) -> str:
    """Never without the failures."""
    counts = report.counts
    parts = [f"{counts.sent} sent", f"{counts.completed} completed", f"{counts.failed} failed"]
    parts += [f"{counts.incomplete} incomplete", f"{counts.cancelled} cancelled"]
    if counts.interrupted:
        parts.append(f"{counts.interrupted} interrupted")
    return ", ".join(parts)


def latency_table(report: LevelReport) -> Table:
    table = Table("ms, completed requests", *COLUMNS, "n")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, field in LATENCIES:
        values: Distribution | None = getattr(report, field)
        cells = [figure(values, column) for column in COLUMNS]
        table.add_row(name, *cells, str(values.count) if values else "0")
    return table


def detail_lines(report: LevelReport) -> Iterator[str]:
    for error, count in report.errors.items():
        yield f"{count} × {error}, for instance: {report.error_examples[error]}"
    rate = report.throughput
    yield (
        f"throughput: {figure(rate, 'requests_per_s', 3)} requests/s, "
        f"{figure(rate, 'output_tokens_per_s')} output tokens/s, "
        f"{figure(rate, 'total_tokens_per_s')} tokens/s in all"
    )
    if tokens := report.tokens:
        yield (
            f"tokens: {tokens.input} in, {tokens.output} out of {tokens.asked} asked for, "
            f"{number(tokens.per_chunk, 2)} per chunk"
        )
    if good := report.goodput:
        limits = ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in good.slos_ms.items())
        rate_of_good = f"{good.requests_per_s:.3f} requests/s, {good.share:.1%} of requests"
        yield f"goodput ({limits}): {rate_of_good}"
    if river := report.river:
        yield (
            f"river: mean exit layer {number(river.mean_exit_layer, 2)} of "
            f"{river.num_layers or '?'}, {river.tokens} decode tokens"
            + (f", {river.early_share:.1%} left early" if river.early_share is not None else "")
            + (f", acceptance {river.acceptance:.1%}" if river.acceptance is not None else "")
        )
    if delay := report.send_delay_ms:
        yield (
            f"open loop: {number(report.sent_per_s, 3)} requests/s sent, at most "
            f"{report.max_in_flight} in flight, send delay p99 {number(delay.p99)} ms"
        )


def sweep_table(levels: list[LevelResult]) -> Table:
    """A line per level."""
    headers = ("requests/s", "output tok/s", "TTFT p50", "TTFT p99", "TPOT p50", "E2E p50")
    table = Table("level", "completed", "failed", *headers, "good")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for item in levels:
        report = item.report
        rate, good = report.throughput, report.goodput
        table.add_row(
            str(item.level),
            str(report.counts.completed),
            str(report.counts.bad),
            figure(rate, "requests_per_s", 3),
            figure(rate, "output_tokens_per_s"),
            figure(report.ttft_ms, "p50"),
            figure(report.ttft_ms, "p99"),
            figure(report.tpot_ms, "p50"),
            figure(report.e2e_ms, "p50"),
            f"{good.share:.1%}" if good else "–",
        )
    return table
