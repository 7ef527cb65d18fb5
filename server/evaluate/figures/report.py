"""All figures of an evaluation, and its exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.evaluate.figures.paired import Paired, pair
from server.evaluate.figures.summary import Summary, summarise
from server.evaluate.figures.warnings import failures, paired_warnings
from server.evaluate.problem import Result
from server.evaluate.settings import SIDES


@dataclass(slots=True)
class Report:
    """One or two sides."""

    sides: dict[str, Summary]
    paired: Paired | None = None
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Why the exit status is 1."""


def make_report(
    results: Mapping[str, Sequence[Result]],
    problems: int,
    confidence: float,
    max_loss: float | None = None,
) -> Report:
    """The figures of ``results`` by side; two sides are also paired."""
    sides = {side: summarise(items, problems, confidence) for side, items in results.items()}
    report = Report(sides, failures=failures(sides))
    if len(sides) == len(SIDES):
        a, b = (results[side] for side in SIDES)
        report.paired = pair(a, b, confidence, max_loss)
        report.warnings += paired_warnings(report.paired)
        if report.paired is not None:
            report.failures += report.paired.verdicts
    return report
