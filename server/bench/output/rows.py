"""Results by line: CSV of levels, JSON lines of requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from server.bench.lag import ClientLoad
from server.bench.measure.level import Throughput, Tokens
from server.bench.measure.statistics import Distribution
from server.bench.measure.timing import Timing, timing_of
from server.bench.output.document import level_document
from server.bench.record import Record
from server.bench.run import LevelResult, RunResult


def flat_level(result: LevelResult) -> dict[str, Any]:
    """One level as a line of CSV: nested names joined by dots, free text left out."""
    document = level_document(result)
    for name in ("errors", "error_examples", "itl_basis", "warnings", "river", "goodput"):
        del document[name]
    river, good = result.report.river, result.report.goodput
    flat = dict(_flatten(document))
    flat["mean_exit_layer"] = river.mean_exit_layer if river else None
    flat["goodput_requests_per_s"] = good.requests_per_s if good else None
    flat["goodput_share"] = good.share if good else None
    return flat


_GROUPS: dict[str, type[Any]] = {
    "ttft_ms": Distribution,
    "itl_ms": Distribution,
    "tpot_ms": Distribution,
    "e2e_ms": Distribution,
    "chunk_gap_ms": Distribution,
    "send_delay_ms": Distribution,
    "throughput": Throughput,
    "tokens": Tokens,
    "client": ClientLoad,
}


def _flatten(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every level has the same columns, also where a group has nothing to say."""
    for name, value in document.items():
        if name in _GROUPS:
            for item in fields(_GROUPS[name]):
                yield f"{name}.{item.name}", value[item.name] if value else None
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield f"{name}.{key}", inner
        else:
            yield name, value


def request_line(record: Record, origin: float, **where: Any) -> dict[str, Any]:
    """One request as a line of JSON. Times are in milliseconds.

    Args:
        origin: the clock's value that counts as 0 for ``sent_ms``.
        where: what the request belonged to, such as its level.
    """
    timing = timing_of(record)
    return {
        **where,
        "index": record.index,
        "outcome": record.outcome.value,
        "error_class": record.error_class,
        "error": record.error,
        "scheduled_ms": None if record.scheduled is None else (record.scheduled - origin) * 1e3,
        "sent_ms": (record.sent - origin) * 1e3,
        "ended_ms": (record.ended - origin) * 1e3,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "asked_tokens": record.asked_tokens,
        "finish_reason": record.finish_reason,
        **_timing_fields(timing),
        "chunks": [
            {"ms": a.seconds * 1e3, "output": a.output, "tokens": a.tokens} for a in record.arrivals
        ],
        "river": record.river,
    }


def _timing_fields(timing: Timing | None) -> dict[str, Any]:
    if timing is None:
        return {"ttft_ms": None, "tpot_ms": None, "e2e_ms": None, "itl_basis": None}
    return {
        "ttft_ms": timing.ttft * 1e3,
        "tpot_ms": None if timing.tpot is None else timing.tpot * 1e3,
        "e2e_ms": timing.e2e * 1e3,
        "itl_basis": timing.basis.value,
    }


def run_lines(result: RunResult) -> Iterator[dict[str, Any]]:
    """Every measured request, level after level; times count from the first one sent."""
    sent = [record.sent for level in result.levels for record in level.records]
    origin = min(sent, default=0.0)
    for level in result.levels:
        for record in level.records:
            yield request_line(record, origin, level=str(level.level))
