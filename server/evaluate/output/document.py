"""An evaluation as JSON: figures first, then one answer a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from server.bench.output.document import metadata
from server.bench.output.files import write_text
from server.evaluate.evaluation import Evaluation
from server.evaluate.figures.report import Report
from server.evaluate.settings import EvalSettings

KIND = "eval"

METHODS = {
    "accuracy": "correct / judged; invalid and cut-off answers count; null if a request failed",
    "interval of an accuracy": "Wilson score interval",
    "interval of a difference": "adjusted Wald interval for paired shares, Bonett & Price 2012",
    "p_value": "exact two-sided McNemar test",
}


def eval_document(
    settings: EvalSettings,
    evaluation: Evaluation,
    report: Report,
    command: list[str],
    started: datetime,
) -> dict[str, Any]:
    """Everything but keys."""
    data = settings.selection.data
    return metadata(KIND, command, started) | {
        "task": settings.task.name,
        "data": data.describe() | {"asked": len(settings.task.problems)},
        "settings": settings.describe(),
        "judging": settings.task.describe(),
        "confidence": settings.confidence,
        "max_loss": settings.max_loss,
        "interrupted": evaluation.interrupted,
        "seconds": evaluation.seconds,
        "sides": {
            side: {
                "url": endpoint.base,
                "model": endpoint.model,
                "river": _plain(settings.sides[side].river),
                "server": evaluation.servers[side],
            }
            for side, endpoint in evaluation.endpoints.items()
        },
        **figures(report),
        "answers": [asdict(result) for result in evaluation.results],
    }


def figures(report: Report) -> dict[str, Any]:
    """What both commands compute."""
    return {
        "figures": {side: asdict(summary) for side, summary in report.sides.items()},
        "paired": asdict(report.paired) if report.paired else None,
        "warnings": report.warnings,
        "failures": report.failures,
        "methods": METHODS,
    }


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Standard JSON; ``answers`` take a line each, since an answer holds hundreds of tokens."""
    head = {name: value for name, value in document.items() if name != "answers"}
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
    if "answers" in document:
        text = text.removesuffix("\n}") + ',\n  "answers": [' + _lines(document["answers"]) + "]\n}"
    write_text(path, text + "\n")


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return ",".join(f"\n    {line}" for line in lines) + ("\n  " if rows else "")


def _plain(river: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(river) if river is not None else None
