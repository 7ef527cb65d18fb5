"""Whether the engine makes progress: a green health check says nothing about that."""

from __future__ import annotations

import time
from collections.abc import Callable

STALL_SECONDS = 120.0
"""Default time without progress after which waiting work makes the server not ready."""


class Progress:
    """Remembers when the engine last finished a step, or was idle.

    Args:
        stall_seconds: how long work may wait without any step finishing.
        clock: monotonic seconds.
    """

    def __init__(
        self, stall_seconds: float = STALL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stall_seconds = stall_seconds
        self._clock = clock
        self._last = clock()
        self._unfinished: Callable[[], bool] = lambda: False
        self._asked = False

    def watch(self, work_waiting: Callable[[], bool]) -> None:
        """``work_waiting`` tells whether any request is unfinished."""
        self._unfinished = work_waiting

    def _waiting(self) -> bool:
        return self._asked or self._unfinished()

    def ask(self) -> None:
        """The engine is asked for a sign of life, which is work too."""
        self.arrival()
        self._asked = True

    def answered(self) -> None:
        """It has given one."""
        self._asked = False
        self.step()

    def step(self) -> None:
        """The engine finished a step, or work arrived at an idle engine."""
        self._last = self._clock()

    def arrival(self) -> None:
        """A request arrives; the clock starts with it if nothing was waiting before."""
        if not self._waiting():
            self.step()

    def stalled_for(self) -> float:
        """Seconds without progress while work waits; 0 when idle."""
        if not self._waiting():
            self.step()
            return 0.0
        return self._clock() - self._last

    @property
    def ready(self) -> bool:
        return self.stalled_for() < self.stall_seconds
