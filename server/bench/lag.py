"""Whether the client itself is too slow to measure: lag of its event loop, its CPU time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from server.bench.measure.statistics import percentile

_PERIOD = 0.01
"""Seconds between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """How busy the client was while a level ran."""

    loop_lag_p50_ms: float | None
    loop_lag_p99_ms: float | None
    loop_lag_max_ms: float | None
    cpu_share: float | None
    """CPU seconds of this process per second; 1.0 is all that one event loop can use."""


@dataclass(slots=True)
class LagMonitor:
    """Sleeps for a fixed time again and again; what it oversleeps is the lag with which the
    loop notices anything, an arriving chunk as well."""

    lags: list[float] = field(default_factory=list)
    _started: tuple[float, float] = (0.0, 0.0)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LagMonitor:
        self._started = (time.perf_counter(), time.process_time())
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            due = time.perf_counter() + _PERIOD
            await asyncio.sleep(_PERIOD)
            self.lags.append(max(0.0, time.perf_counter() - due))

    def load(self) -> ClientLoad:
        wall = time.perf_counter() - self._started[0]
        cpu = time.process_time() - self._started[1]
        share = cpu / wall if wall > 0 else None
        if not self.lags:
            return ClientLoad(None, None, None, share)
        ordered = sorted(self.lags)
        p50, p99 = (percentile(ordered, percent) * 1e3 for percent in (50, 99))
        return ClientLoad(p50, p99, ordered[-1] * 1e3, share)
