"""The figures on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from server.bench.output.table import number, print_warnings
from server.evaluate.figures.paired import Paired
from server.evaluate.figures.report import Report
from server.evaluate.figures.summary import Share, Summary

_SHOWN_OUTCOMES = 6


def print_report(
    console: Console, headings: Mapping[str, str], report: Report, confidence: float
) -> None:
    """Who was asked, a column per side, the comparison, what to know, why it failed."""
    for side, heading in headings.items():
        console.print(f"{side}: {heading}", markup=False)
    console.print(_table(report.sides, confidence))
    for side, summary in report.sides.items():
        console.print(f"{side} outcomes: {_outcomes(summary.outcomes)}", markup=False)
    if report.paired is not None:
        for line in paired_lines(report.paired, confidence):
            console.print(line, markup=False)
    print_warnings(console, report.warnings)
    for reason in report.failures:
        console.print("[red]failed:[/red]", reason.replace("[", r"\["))


def side_heading(base: str, model: str, river: Mapping[str, Any] | None) -> str:
    field = "server's default" if river is None else str(dict(river))
    return f"{base} · model {model} · river {field}"


def _table(sides: Mapping[str, Summary], confidence: float) -> Table:
    table = Table("figure", *sides)
    for column in table.columns[1:]:
        column.justify = "right"
    columns = [dict(summary_rows(summary, confidence)) for summary in sides.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "–") for column in columns))
    return table


def summary_rows(summary: Summary, confidence: float) -> Iterator[tuple[str, str]]:
    """Name and value."""
    yield "judged", f"{summary.judged} of {summary.problems}"
    yield "failed requests", str(summary.failed)
    yield f"accuracy, {confidence:.0%} interval", _share(summary.accuracy)
    for name, share in summary.other.items():
        yield f"accuracy by the {name} rule", _share(share)
    yield "invalid (nothing extracted)", str(summary.invalid)
    cut_off = f"{summary.cut_off} ({summary.cut_off_correct} right)" if summary.cut_off else "0"
    yield "cut off (finish_reason length)", cut_off
    yield "mean output tokens", number(summary.mean_output_tokens)
    yield "mean seconds per request", number(summary.mean_seconds, 2)
    if summary.river is not None:
        layers = f" of {summary.river.num_layers}" if summary.river.num_layers else ""
        yield "mean exit layer", number(summary.river.mean_exit_layer, 2) + layers


def _share(share: Share | None) -> str:
    if share is None:
        return "–"
    return f"{share.value:.1%} ({share.low:.1%} … {share.high:.1%})"


def _p_value(paired: Paired) -> str:
    return f"= {paired.p_value:.4f}" if paired.p_value >= 0.0001 else "< 0.0001"


def _outcomes(outcomes: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(outcomes.items())[:_SHOWN_OUTCOMES]]
    if rest := sum(list(outcomes.values())[_SHOWN_OUTCOMES:]):
        shown.append(f"others {rest}")
    return ", ".join(shown) or "none"


def paired_lines(paired: Paired, confidence: float) -> Iterator[str]:
    """The comparison in words."""
    difference, low, high = (100 * x for x in (paired.difference, paired.low, paired.high))
    yield (
        f"B − A: {difference:+.2f} points on {paired.pairs} problems, {confidence:.0%} interval "
        f"{low:+.2f} … {high:+.2f} (adjusted Wald); exact McNemar p {_p_value(paired)}"
    )
    yield f"right on both sides: {paired.both_right}, wrong on both: {paired.both_wrong}"
    for side, ids in (("A", paired.only_a), ("B", paired.only_b)):
        yield f"right on {side} alone: {len(ids)}" + (f" ({', '.join(ids)})" if ids else "")
    yield (
        f"identical outputs: {paired.identical} of {paired.pairs} "
        f"({paired.identical / paired.pairs:.1%}, by {paired.compared_by})"
    )
