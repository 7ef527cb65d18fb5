"""Reads the samples of an lm-eval run: one line per problem and filter."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from river_vllm.errors import RiverError

_FILE = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[^_]+\.jsonl")


@dataclass(frozen=True, slots=True)
class Sample:
    """One problem with its answer and metrics."""

    id: str
    asked: tuple[str, str]
    """Hashes of the problem and of its prompt."""
    answer: Any
    metrics: dict[str, float]


Samples = dict[tuple[str, str], dict[int, Sample]]
"""By task and filter, then by lm-eval's number of the problem."""


def read_samples(folder: Path) -> Samples:
    """The samples of the only run in ``folder`` or below it.

    Raises:
        RiverError: there is no run, a task has two, or a file is not lm-eval's.
    """
    found: Samples = {}
    tasks: set[str] = set()
    for file in sorted(folder.rglob("samples_*.jsonl")):
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        if match["task"] in tasks:
            raise RiverError(f"{str(folder)!r}: expected one run of {match['task']}, found two")
        tasks.add(match["task"])
        # Not splitlines(): an answer may hold Unicode's other line separators.
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    samples = found.setdefault((match["task"], row["filter"]), {})
                    samples[row["doc_id"]] = _sample(row)
                except (ValueError, KeyError, TypeError) as error:
                    raise RiverError(
                        f"{str(file)!r} line {number}: expected a sample of lm-eval ({error!r})"
                    ) from None
    if not found:
        raise RiverError(f"{str(folder)!r}: expected a folder with lm-eval's samples_TASK_….jsonl")
    return found


def _sample(row: dict[str, Any]) -> Sample:
    values = {name: row[name] for name in row["metrics"]}
    return Sample(
        id=str(row["doc"].get("id", row["doc_id"])),
        asked=(row["doc_hash"], row["prompt_hash"]),
        answer=row["resps"],
        metrics={
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and isfinite(value)
        },
    )
