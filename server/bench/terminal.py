"""Progress bars for a person at a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class TerminalBars:
    """Bars on standard error while the block runs; silent where that is no terminal.

    Args:
        columns: of each bar.
        shown: whether there are to be any.
        transient: whether they vanish at the end.
    """

    def __init__(
        self, *columns: str | ProgressColumn, shown: bool, transient: bool = False
    ) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            *columns,
            console=console,
            disable=not (shown and console.is_terminal),
            transient=transient,
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
