"""Closed and open loops: who sends when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

import httpx

from server.bench.arrivals import ArrivalKind, schedule
from server.bench.lag import ClientLoad, LagMonitor
from server.bench.record import Record
from server.bench.request import Planned, send

Plan = Callable[[int], Planned]
"""Makes the request of a number."""

OnEnd = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Level:
    """One load: closed with ``concurrency``, or open with ``rate`` requests per second."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"rate {self.rate:g}/s"
        return f"concurrency {self.concurrency}"


@dataclass(frozen=True, slots=True)
class Limits:
    """When a level stops sending; requests in flight then are waited for."""

    count: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class LevelRun:
    """What happened in one level."""

    level: Level
    records: list[Record] = field(default_factory=list)
    client: ClientLoad | None = None
    interrupted: bool = False

    @property
    def duration(self) -> float:
        """Seconds from the first request sent to the last one ended, whatever became of it."""
        if not self.records:
            return 0.0
        return max(r.ended for r in self.records) - min(r.sent for r in self.records)


class LevelRunner:
    """Runs one level. ``Ctrl-C``, a cancelled task, ends it early and keeps its records."""

    def __init__(
        self, client: httpx.AsyncClient, level: Level, limits: Limits, plan: Plan, on_end: OnEnd
    ) -> None:
        self._client = client
        self._limits = limits
        self._plan = plan
        self._on_end = on_end
        self._deadline: float | None = None
        self._next = 0
        self.run = LevelRun(level)

    async def closed(self) -> LevelRun:
        """``concurrency`` workers, each sending its next request when its last one ended."""
        async with self._measured(), asyncio.TaskGroup() as group:
            for _ in range(self.run.level.concurrency or 1):
                group.create_task(self._work())
        return self.run

    async def open(self, kind: ArrivalKind, seed: int) -> LevelRun:
        """Requests sent on schedule, whether or not earlier ones have ended."""
        async with self._measured(), asyncio.TaskGroup() as group:
            start = perf_counter()
            for offset in schedule(self.run.level.rate or 1.0, kind, seed):
                due = start + offset
                if self._over(due):
                    break
                await asyncio.sleep(max(0.0, due - perf_counter()))
                group.create_task(self._one(self._take(), due))
        return self.run

    @asynccontextmanager
    async def _measured(self) -> AsyncIterator[None]:
        if self._limits.seconds is not None:
            self._deadline = perf_counter() + self._limits.seconds
        async with LagMonitor() as monitor:
            try:
                yield
            except asyncio.CancelledError:
                self.run.interrupted = True
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
            self.run.client = monitor.load()

    async def _work(self) -> None:
        while not self._over(perf_counter()):
            await self._one(self._take())

    def _over(self, when: float) -> bool:
        if self._limits.count is not None and self._next >= self._limits.count:
            return True
        return self._deadline is not None and when >= self._deadline

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    async def _one(self, index: int, scheduled: float | None = None) -> None:
        planned = self._plan(index)
        record = Record(index, perf_counter(), scheduled, planned.asked_tokens)
        self.run.records.append(record)
        try:
            await send(self._client, planned, record)
        finally:
            self._on_end(record)
