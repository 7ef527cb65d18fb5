"""A run as plain data: the one shape that the JSON, CSV and HTML outputs share."""

from __future__ import annotations

import platform
import socket
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from server.bench.formulas import RUN_FORMULAS, as_document
from server.bench.run import LevelResult, RunResult
from server.bench.settings import RequestSettings, RunSettings

FORMAT = 1
"""Raised when a field of the documents changes its meaning."""


def metadata(kind: str, command: list[str], started: datetime) -> dict[str, Any]:
    """Where a document comes from. Keys never stand on a command line, so it can be told."""
    try:
        client = version("river-vllm")
    except PackageNotFoundError:
        client = None
    return {
        "kind": kind,
        "format": FORMAT,
        "client": {"version": client, "python": platform.python_version()},
        "machine": {"host": socket.gethostname(), "platform": platform.platform()},
        "command": command,
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
    }


def run_document(
    settings: RunSettings, result: RunResult, command: list[str], started: datetime
) -> dict[str, Any]:
    """The whole of a run, but for its single requests."""
    return metadata("run", command, started) | {
        "interrupted": result.interrupted,
        "endpoint": {"url": result.endpoint.base, "model": result.endpoint.model},
        "requests": request_settings(settings.requests),
        "warmup": {"sent": result.warmup_sent, "failed": result.warmup_failed},
        "warnings": result.warnings,
        "levels": [level_document(level) for level in result.levels],
        "formulas": as_document(RUN_FORMULAS),
    }


def request_settings(settings: RequestSettings) -> dict[str, Any]:
    """How requests were made."""
    body = asdict(settings.body)
    body["river"] = dict(settings.body.river) if settings.body.river is not None else None
    return body | {
        "dataset": settings.dataset.describe(),
        "seed": settings.seed,
        "timeout_s": settings.timeout,
        "cancel_rate": settings.cancel_rate,
        "cancel_after": settings.cancel_after,
    }


def level_document(result: LevelResult) -> dict[str, Any]:
    """One level; the load first."""
    load = {"concurrency": result.level.concurrency, "rate": result.level.rate}
    return {"load": load, **asdict(result.report)}
