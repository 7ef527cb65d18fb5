"""The time that passes take on their device, taken without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch


class Stopwatch:
    """Times passes by the clock on a CPU, by the device's own events elsewhere.

    A pass is read at the start of the pass ``late`` after it: its tokens are on the host then. So
    no read waits, and all tensor-parallel ranks read the same passes at the same time.
    """

    def __init__(self, device: torch.device, late: int = 1) -> None:
        self._device = device
        self._late = late
        self._ended: deque[tuple[Any, Any, Any]] = deque()

    def start(self) -> None:
        """A pass begins."""
        self._begun = self._mark()

    def stop(self, what: Any) -> None:
        """The pass that began last is over; ``what`` is returned with its time."""
        self._ended.append((what, self._begun, self._mark()))

    def read(self) -> Iterator[tuple[Any, float]]:
        """The passes whose turn it is, with their seconds."""
        while len(self._ended) >= self._late:
            what, begun, ended = self._ended.popleft()
            if self._device.type == "cpu":
                yield what, ended - begun
            else:
                ended.synchronize()
                yield what, begun.elapsed_time(ended) / 1e3

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event
