"""What commands write: files, tables, and progress bars for a person at a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_WIDTH = 150
"""Columns if the output is no terminal: the width of the widest table, eval's."""


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


class Steps(Progress):
    """A bar for each part of the work, on standard error if that is a terminal."""

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def step(self, name: str, total: int) -> None:
        """Begin a part of the work; an earlier part of the same name continues its bar."""
        for task in self.tasks:
            if task.description == name:
                self.update(task.id, total=(task.total or 0) + total)
                self._current = task.id
                return
        self._current = self.add_task(name, total=total)

    def done(self, count: int = 1) -> None:
        """Advance the bar of the current part."""
        self.advance(self._current, count)
