"""Whether the engine makes progress, which vLLM's health check does not tell, or shuts down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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
        """Set the function that tells whether any request is unfinished."""
        self._unfinished = work_waiting

    def _waiting(self) -> bool:
        return self._asked or self._unfinished()

    def ask(self) -> None:
        """Note a question to the engine; it is work until its answer."""
        self.arrival()
        self._asked = True

    def answered(self) -> None:
        """Note the engine's answer to the question."""
        self._asked = False
        self.step()

    def step(self) -> None:
        """Note that the engine finished a step, or that work arrived at an idle engine."""
        self._last = self._clock()

    def arrival(self) -> None:
        """Note a request's arrival; the clock starts with it if nothing was waiting."""
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


@dataclass(slots=True)
class Ending:
    """Whether the engine is shutting down, and whether a failure is the reason."""

    begun: bool = False
    failed: bool = False

    def begin(self, failed: bool) -> None:
        """Set the reason; later calls do nothing, since vLLM shuts its client down repeatedly."""
        if not self.begun:
            self.begun, self.failed = True, failed


ending = Ending()
"""The shutdown of this process."""
