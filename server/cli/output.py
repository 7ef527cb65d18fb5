"""What commands write: files, tables, and progress: bars on a terminal, else lines."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tqdm import tqdm

_WIDTH = 150
"""Columns if the output is no terminal: the width of the widest table, eval's."""
EVERY = 10.0
"""Seconds between two lines of progress."""


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
    """The progress of each part of the work, on standard error.

    A terminal gets a bar for each part; any other output a line every ten seconds.

    Args:
        shown: whether anything is written.
        clock: monotonic seconds.
    """

    def __init__(self, shown: bool, clock: Callable[[], float] = time.monotonic) -> None:
        console = Console(stderr=True)
        self._clock = clock
        self._lines = shown and not console.is_terminal
        self._began = self._last = clock()
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
        now = self._clock()
        if self._lines and now - self._last >= EVERY:
            self._last = now
            task = next(task for task in self.tasks if task.id == self._current)
            done = f"{task.description}: {task.completed:.0f} of {task.total:.0f}"
            print(f"{done}, {now - self._began:.0f} s", file=sys.stderr, flush=True)

    def requests(self, name: str) -> Callable[..., Any]:
        """For vLLM's ``use_tqdm``: a part of the work that advances with each finished request."""
        steps = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                counts = "total" in kwargs  # vLLM shows the rendering of prompts too
                super().__init__(*args, **kwargs, file=io.StringIO(), disable=not counts)
                if counts:
                    steps.step(name, kwargs["total"])

            def update(self, n: float | None = 1) -> bool | None:
                steps.done(int(n or 0))
                return super().update(n)

        return Bar
