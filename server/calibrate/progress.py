"""What a person at a terminal sees meanwhile."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Steps:
    """A bar for each part of the work, on standard error; silent where that is no terminal."""

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

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
