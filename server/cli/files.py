"""Files and tables that commands write: checked when the command line is read."""

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
"""Columns where the output is no terminal: those of the widest table, eval's."""


def _writable(path: Path) -> Path:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        raise ValueError("expected a file in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError("not writable")
    return path


OutputFile = Annotated[Path, AfterValidator(_writable), Shown("FILE")]
"""Found out now, and not after minutes of work."""


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Standard JSON: what is not known is ``null``; there is no NaN."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8; halves of surrogate pairs, which a server may send, become JSON escapes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def make_console(record: bool = False) -> Console:
    """For tables on standard output; ``record`` keeps them for ``save_html``."""
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, soft_wrap=True, record=record)


def number(value: float | None, digits: int = 1) -> str:
    """For people: a dash where there is no figure."""
    return "–" if value is None else f"{value:,.{digits}f}"
