"""Result files: checked before the load starts, written after it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from server.bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """Where to write what; ``None`` is nowhere."""

    json: Path | None = None
    csv: Path | None = None
    requests: Path | None = None
    html: Path | None = None

    def check(self) -> None:
        """Find out now what would fail after minutes of load.

        Raises:
            BenchError: a file cannot be written, or two outputs share one.
        """
        seen: dict[Path, str] = {}
        for item in fields(self):
            path: Path | None = getattr(self, item.name)
            if path is None:
                continue
            option, place = f"--{item.name} '{path}'", path.resolve()
            if place in seen:
                raise BenchError(f"{option}: the same file as {seen[place]}")
            if path.is_dir() or not place.parent.is_dir():
                raise BenchError(f"{option}: expected a file in a folder that exists")
            if not os.access(path if path.exists() else place.parent, os.W_OK):
                raise BenchError(f"{option}: not writable")
            seen[place] = option


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Standard JSON: what is not known is ``null``; there is no NaN."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8; halves of surrogate pairs, which a server may send, become JSON escapes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line per row; the columns are those of the first, nothing is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
