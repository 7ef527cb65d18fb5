"""What a person at a terminal sees while requests run."""

from __future__ import annotations

import time

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from server.bench.load import Limits
from server.bench.record import Outcome, Record
from server.bench.terminal import TerminalBars


class Bar(TerminalBars):
    """One bar, of the part of the run that is under way."""

    def __init__(self, shown: bool = True) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            shown=shown,
            transient=True,
        )
        self._task: TaskID | None = None
        self._limits = Limits()
        self._started = 0.0
        self._ended = self._bad = 0

    def begin(self, name: str, limits: Limits) -> None:
        """Start a bar of its own for a part of the run."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._limits, self._started = limits, time.perf_counter()
        self._ended = self._bad = 0
        total = limits.count or limits.seconds
        self._task = self._bars.add_task(name, total=total, state="")

    def advance(self, record: Record) -> None:
        """Count a request that ended."""
        if self._task is None:
            return
        self._ended += 1
        self._bad += record.outcome in (Outcome.FAILED, Outcome.INCOMPLETE)
        if self._limits.count is None:
            done = time.perf_counter() - self._started
        else:
            done = float(self._ended)
        state = f"{self._ended} done" + (f", [red]{self._bad} failed[/red]" if self._bad else "")
        self._bars.update(self._task, completed=done, state=state)
