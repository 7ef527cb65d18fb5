"""Reads prompts or problems from a file: a row per line, JSON objects or plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import from_json

from river_vllm.errors import RiverError

KEYS = ("messages", "question", "prompt")
"""Fields that may hold a row's prompt, the first one counts: a conversation, one message of the
user, or text to continue."""


def read_rows(path: Path, option: str) -> tuple[bytes, list[tuple[int, Any]]]:
    """The file's bytes, and each non-empty line's number with its object or text.

    If the first line is no object, all lines are plain text.

    Args:
        option: the option that named the file, for errors.

    Raises:
        RiverError: the file cannot be read or has no row, or a line is not JSON.
    """
    place = f"{option} '{path}'"
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise RiverError(f"{place}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RiverError(f"{place}: expected UTF-8 text") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RiverError(f"{place}: expected at least one row, found none")
    if not lines[0][1].lstrip().startswith("{"):
        return data, [(number, line.rstrip("\r")) for number, line in lines]
    rows = []
    for number, line in lines:
        try:
            rows.append((number, from_json(line, allow_inf_nan=False)))
        except ValueError:
            raise RiverError(f"{place}, line {number}: expected JSON") from None
    return data, rows


def prompt_of(row: Any, place: str, field: str | None = None) -> tuple[str, Any]:
    """The name and the value of the field that holds a row's prompt; plain text is ``prompt``.

    Args:
        field: name of the field, if it is not one of ``KEYS``.

    Raises:
        RiverError: the row at ``place`` has no prompt, or its prompt is no text.
    """
    if isinstance(row, str):
        return "prompt", row
    if not isinstance(row, dict):
        raise RiverError(f"{place}: expected an object or text, got {row!r}")
    names = KEYS if field is None else (field,)
    key = next((name for name in names if name in row), None)
    if key is None:
        raise RiverError(f"{place}: expected one of {', '.join(names)}, got {', '.join(row)}")
    value = row[key]
    if key == "messages":
        if not isinstance(value, list) or not value:
            raise RiverError(f"{place}: 'messages' = {value!r}: expected a list of messages")
    elif not isinstance(value, str) or not value:
        raise RiverError(f"{place}: '{key}' = {value!r}: expected text")
    return key, value
