"""Progress bars on a terminal."""

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
        """Begin a part of the work; one that was begun before goes on with its bar."""
        for task in self._bars.tasks:
            if task.description == name:
                self._bars.update(task.id, total=(task.total or 0) + total)
                self._current = task.id
                return
        self._current = self._bars.add_task(name, total=total)

    def advance(self, count: int) -> None:
        self._bars.advance(self._current, count)
