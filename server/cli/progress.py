"""Progress bars for a person at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Steps(Progress):
    """A bar for each part of the work, on standard error, and none where that is no terminal."""

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
        """Begin a part of the work; one that was begun before goes on with its bar."""
        for task in self.tasks:
            if task.description == name:
                self.update(task.id, total=(task.total or 0) + total)
                self._current = task.id
                return
        self._current = self.add_task(name, total=total)

    def done(self, count: int = 1) -> None:
        """Of the part that was begun last."""
        self.advance(self._current, count)
