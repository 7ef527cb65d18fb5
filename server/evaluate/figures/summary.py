"""The figures of one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from server.bench.measure.exit_depth import RiverReport, river_report
from server.evaluate.figures.statistics import wilson_interval
from server.evaluate.problem import Result, Verdict


@dataclass(frozen=True, slots=True)
class Share:
    """``correct`` of ``total``, with its Wilson interval."""

    correct: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One side. Failed requests never improve a figure: with any, there is no accuracy."""

    problems: int
    judged: int
    failed: int
    errors: dict[str, int]
    """Kind of failure → how many."""
    first_error: str | None
    accuracy: Share | None
    other: dict[str, Share]
    """By rules of extraction that do not decide."""
    invalid: int
    """Nothing could be extracted; these count as wrong."""
    cut_off: int
    """Answers that reached the limit of tokens; they are judged as they are."""
    cut_off_correct: int
    outcomes: dict[str, int]
    mean_output_tokens: float | None
    mean_seconds: float | None
    """Of a request, from sending it to its whole answer."""
    river: RiverReport | None


def summarise(results: Sequence[Result], problems: int, confidence: float) -> Summary:
    """The figures of ``results``, the answers of one side to some of ``problems`` problems."""
    judged = [(item, item.verdict) for item in results if item.verdict is not None]
    failures = [item for item in results if item.failed]
    verdicts = [verdict for _, verdict in judged]
    cut_off = [verdict for item, verdict in judged if item.cut_off]
    whole = not failures and bool(verdicts)
    return Summary(
        problems=problems,
        judged=len(judged),
        failed=len(failures),
        errors=dict(Counter(item.error_class or "unknown" for item in failures)),
        first_error=next((f"{f.error_class}: {f.error}" for f in failures), None),
        accuracy=_share([v.correct for v in verdicts], confidence) if whole else None,
        other=_others(verdicts, confidence) if whole else {},
        invalid=sum(verdict.extracted is None for verdict in verdicts),
        cut_off=len(cut_off),
        cut_off_correct=sum(verdict.correct for verdict in cut_off),
        outcomes=dict(Counter(verdict.outcome for verdict in verdicts).most_common()),
        mean_output_tokens=_mean(item.completion_tokens for item, _ in judged),
        mean_seconds=_mean(item.seconds for item, _ in judged),
        river=river_report(item.river for item, _ in judged),
    )


def _share(correct: Sequence[bool], confidence: float) -> Share:
    right, total = sum(correct), len(correct)
    return Share(right, total, right / total, *wilson_interval(right, total, confidence))


def _others(verdicts: Sequence[Verdict], confidence: float) -> dict[str, Share]:
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.other)
    return {
        name: _share([verdict.other[name].correct for verdict in verdicts], confidence)
        for name in names
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """``None`` where one is unknown, rather than a mean of the others."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    return fmean(value for value in known if value is not None)
