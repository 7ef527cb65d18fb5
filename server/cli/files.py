"""Files and tables that commands write; files are checked with the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from rich.console import Console

from server.cli.arguments import Shown

_WIDTH = 150
"""Columns if the output is no terminal: the width of the widest table, eval's."""


def _writable(path: Path) -> Path:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        raise ValueError("expected a file in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError("not writable")
    return path


OutputFile = Annotated[Path, AfterValidator(_writable), Shown("FILE")]
"""A writable file, checked before minutes of work."""


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write standard JSON: unknown values are ``null``, never NaN."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; lone surrogates, which a server may send, become JSON escapes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def make_console(record: bool = False) -> Console:
    """A console for tables on standard output; ``record`` keeps them for ``save_html``."""
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, soft_wrap=True, record=record)


def number(value: float | None, digits: int = 1) -> str:
    """A figure for people; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"
