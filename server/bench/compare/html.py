"""The HTML report of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from server.bench.compare.output import HEADERS, ratio_rows, summary_line
from server.bench.compare.ratios import CompareReport, Ratio
from server.bench.formulas import COMPARE_FORMULAS, RUN_FORMULAS
from server.bench.output import page, plots
from server.bench.output.html import level_parts
from server.bench.settings import CompareSettings


def compare_page(settings: CompareSettings, report: CompareReport, document: dict[str, Any]) -> str:
    """A page for people, from the results and the document of the same comparison."""
    return page.page("Comparison of two endpoints", _parts(settings, report, document))


def _parts(
    settings: CompareSettings, report: CompareReport, document: dict[str, Any]
) -> Iterator[str]:
    for side, endpoint in document["endpoints"].items():
        yield page.note(f"{side}: {endpoint['url']} · {endpoint['model']}")
    yield page.warnings([*report.verdicts, *report.warnings])
    yield page.heading("How much faster B is")
    yield page.table(HEADERS, ratio_rows(report))
    yield page.note(summary_line(settings, report))
    if any(ratio.rounds for ratio in report.ratios):
        yield ratio_plot(report.ratios)
    for side, level in report.sides.items():
        yield page.heading(side)
        yield from level_parts(level)
    yield page.heading("How the figures are computed")
    yield page.definitions(COMPARE_FORMULAS + RUN_FORMULAS)
    yield page.heading("How it was measured")
    names = ("command", "client", "machine", "started", "endpoints", "requests", "concurrency")
    yield page.data(document, (*names, "block"))


def ratio_plot(ratios: list[Ratio]) -> str:
    """Every round as a dot, the median and its interval over them."""
    shown = [ratio for ratio in ratios if ratio.rounds]
    figure = plots.new_figure(9.5, 0.5 * len(shown) + 1)
    axes = figure.subplots()
    for place, ratio in enumerate(reversed(shown)):
        axes.plot(ratio.rounds, [place] * len(ratio.rounds), ".", color="#8c959f", alpha=0.6)
        if ratio.low is not None and ratio.high is not None:
            axes.plot([ratio.low, ratio.high], [place, place], color=plots.COLORS[0], linewidth=3)
        axes.plot([median(ratio.rounds)], [place], "D", color=plots.COLORS[0])
    axes.axvline(1.0, color="#cf222e", linewidth=1)
    axes.set_yticks(range(len(shown)), [ratio.metric for ratio in reversed(shown)])
    axes.set(xlabel="ratio; above 1 B is faster", ylim=(-0.6, len(shown) - 0.4))
    return plots.svg(figure)
