"""What a person at a terminal sees meanwhile."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from server.bench.terminal import TerminalBars


class Steps(TerminalBars):
    """A bar for each part of the work."""

    def __init__(self, shown: bool) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            shown=shown,
        )

    def step(self, name: str, total: int) -> None:
        """Go on to the next part; the same name goes on with the bar that is there."""
        for task in self._bars.tasks:
            if task.description == name:
                self._bars.update(task.id, total=(task.total or 0) + total)
                self._current = task.id
                return
        self._current = self._bars.add_task(name, total=total)

    def advance(self, count: int) -> None:
        self._bars.advance(self._current, count)
