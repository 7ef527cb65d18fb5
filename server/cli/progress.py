"""Progress bars for a person at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


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
