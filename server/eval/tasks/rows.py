"""Problems out of a JSONL file, as lm-eval takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from river_vllm.errors import RiverError


def load(
    fields: Sequence[str],
    examples: int,
    data: str | None = None,
    num_fewshot: int | None = None,
    **_: object,
) -> dict[str, Any]:
    """``examples``, the first rows, and ``test``, those that are asked.

    Args:
        fields: texts that each row must have; ``id`` is added, a row's ``task_id`` or its line.
        examples: how many stand before a question, unless ``num_fewshot`` says so.
        data: the file.

    Raises:
        RiverError: names the file, the line, the field, its value and what is expected.
    """
    from datasets import Dataset

    if data is None:
        raise RiverError("--data: expected a file of problems, River's own tasks bring none")
    try:
        lines = Path(data).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RiverError(f"--data = {data!r}: {error}") from None
    rows = [_row(data, n, line, fields) for n, line in enumerate(lines, 1) if line.strip()]
    count = examples if num_fewshot is None else num_fewshot
    if len(rows) <= count:
        raise RiverError(f"--data = {data!r}: expected more rows than the {count} examples")
    return {"examples": Dataset.from_list(rows[:count]), "test": Dataset.from_list(rows[count:])}


def _row(data: str, number: int, line: str, fields: Sequence[str]) -> dict[str, str]:
    place = f"--data = {data!r} line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RiverError(f"{place}: {error}") from None
    if not isinstance(row, dict):
        raise RiverError(f"{place}: expected a JSON object")
    for name in fields:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RiverError(f"{place}: {name!r} = {row.get(name)!r}: expected a text")
    return {"id": str(row.get("task_id", number)), **{name: row[name] for name in fields}}
