"""What a reader of the figures should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.bench.settings import Target
from server.evaluate.figures.paired import Paired
from server.evaluate.figures.summary import Summary
from server.evaluate.problem import Result

CUT_OFF_SHARE = 0.02
"""Answers cut off above this share are worth a warning."""


def failures(sides: Mapping[str, Summary]) -> list[str]:
    """Why the evaluation failed, a line per side with failed requests."""
    return [
        f"{side}: {summary.failed} of {summary.problems} requests failed ("
        + ", ".join(f"{name}: {count}" for name, count in summary.errors.items())
        + f"); the first: {summary.first_error}"
        for side, summary in sides.items()
        if summary.failed
    ]


def side_warnings(
    side: str, summary: Summary, target: Target, results: Sequence[Result]
) -> list[str]:
    """Of one side that was asked."""
    return [f"{side}: {text}" for text in _about(summary, target.river, results)]


def _about(
    summary: Summary, river: Mapping[str, Any] | None, results: Sequence[Result]
) -> Iterator[str]:
    silent = sum(item.verdict is not None and item.river is None for item in results)
    if river is not None and silent:
        yield (
            f"{silent} of {summary.judged} answers do not tell their exit depths: "
            "the server may not know the river field"
        )
    if summary.cut_off > CUT_OFF_SHARE * summary.judged:
        yield (
            f"{summary.cut_off} of {summary.judged} answers were cut off; a higher --max-tokens "
            "would let them end"
        )


def paired_warnings(paired: Paired | None) -> list[str]:
    if paired is None or paired.compared_by == "tokens":
        return []
    return ["not every answer has token_ids (vLLM's return_token_ids): outputs compared as text"]


INTERRUPTED = "interrupted: the figures are of what had been answered by then"
