"""Rows of a JSONL file, and which of them are examples and which are asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.errors import BenchError
from server.bench.jsontext import loads_sendable


@dataclass(frozen=True, slots=True)
class Row:
    """One problem as the file has it."""

    line: int
    """Counted from 1, empty lines as well."""
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """The text in field ``name``.

        Raises:
            ValueError: there is none; the message names the field and the value.
        """
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"'{name}' = {value!r}: expected a text")
        return value


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file's rows, and what identifies its content."""

    option: str
    """The option that named it, and its path: how messages begin."""
    name: str
    sha256: str
    rows: tuple[Row, ...]

    def error(self, row: Row, reason: object) -> BenchError:
        return BenchError(f"{self.option} line {row.line}: {reason}")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.rows), "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Selection:
    """What an evaluation takes from its files."""

    data: DataFile
    asked: tuple[Row, ...]
    shots: tuple[Row, ...] = ()
    """Examples that stand before every question."""
    shots_file: DataFile | None = None
    """Where they come from, if not from the head of ``data``."""


def read_rows(path: str, option: str) -> DataFile:
    """Read a file of JSON objects, one a line.

    Raises:
        BenchError: names the option, the file, the line and what is expected there.
    """
    place = f"{option} {path!r}"
    try:
        content = Path(path).read_bytes()
        lines = content.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"{place}: {reason}") from None
    rows = [Row(n, _object(place, n, line)) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise BenchError(f"{place}: the file has no rows")
    return DataFile(place, Path(path).name, hashlib.sha256(content).hexdigest(), tuple(rows))


def _object(place: str, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = loads_sendable(line)
    except ValueError as error:
        raise BenchError(f"{place} line {number}: {error}") from None
    if not isinstance(value, dict):
        raise BenchError(f"{place} line {number}: expected a JSON object")
    return value


def select(data: DataFile, shots: int, shots_file: DataFile | None, limit: int | None) -> Selection:
    """Take examples from the head of ``shots_file``, or else of ``data``, which then asks the rest.

    Raises:
        BenchError: too few rows, or an example that is also asked.
    """
    source = data if shots_file is None else shots_file
    if shots > len(source.rows):
        raise BenchError(f"--shots {shots}: {source.option} has {len(source.rows)} rows")
    examples = source.rows[:shots]
    asked = (data.rows[shots:] if shots_file is None else data.rows)[:limit]
    if not asked:
        raise BenchError(f"--shots {shots}: no row of {data.option} is left to be asked")
    if shots_file is not None:
        _refuse_asked_examples(examples, asked, data)
    return Selection(data, asked, examples, shots_file)


def _refuse_asked_examples(examples: Sequence[Row], asked: Sequence[Row], data: DataFile) -> None:
    for example in examples:
        for row in asked:
            if example.fields == row.fields:
                raise BenchError(
                    f"--shots-file line {example.line}: the same as line {row.line} of "
                    f"{data.option}, which would be asked with its answer before it"
                )
