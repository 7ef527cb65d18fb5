"""Reads problems from a JSONL file for lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from river_vllm.errors import RiverError
from server.cli.rows import read_rows


def load(
    fields: Sequence[str],
    examples: int,
    data: str | None = None,
    num_fewshot: int | None = None,
    **_: object,
) -> dict[str, Any]:
    """The data sets ``examples`` (the first rows) and ``test`` (all others).

    Args:
        fields: text fields of every row; ``id`` is added, the row's ``task_id`` or line number.
        examples: number of examples before a question, unless ``num_fewshot`` is given.
        data: the file.

    Raises:
        RiverError: names the file, the line, the field, its value and what is expected.
    """
    from datasets import Dataset

    if data is None:
        raise RiverError("--data: expected a file of problems, River's own tasks bring none")
    place = f"--data '{data}'"
    found = read_rows(Path(data), "--data")[1]
    rows = [_row(f"{place}, line {line}", line, row, fields) for line, row in found]
    count = examples if num_fewshot is None else num_fewshot
    if len(rows) <= count:
        raise RiverError(f"{place}: expected more rows than the {count} examples")
    return {"examples": Dataset.from_list(rows[:count]), "test": Dataset.from_list(rows[count:])}


def _row(place: str, line: int, row: Any, fields: Sequence[str]) -> dict[str, str]:
    if not isinstance(row, dict):
        raise RiverError(f"{place}: expected a JSON object, got {row!r}")
    for name in fields:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RiverError(f"{place}: {name!r} = {row.get(name)!r}: expected a text")
    return {"id": str(row.get("task_id", line)), **{name: row[name] for name in fields}}
