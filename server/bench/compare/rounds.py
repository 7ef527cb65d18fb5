"""Asking both sides, round after round, in alternating order."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx

from server.bench.datasets import WARM_UP
from server.bench.endpoint import Endpoint, find_endpoint, make_client
from server.bench.lag import ClientLoad, LagMonitor
from server.bench.load import Level, LevelRun, LevelRunner, Limits
from server.bench.progress import Bar
from server.bench.record import Record
from server.bench.request import Planned
from server.bench.settings import CompareSettings, Target

PART = "compare"
WAKE = "wake"
"""The ``part`` of the requests before a turn."""
WAKE_TOKENS = 2
SIDES = ("A", "B")


@dataclass(slots=True)
class Round:
    """One block of requests per side; a side that was not reached is missing."""

    order: tuple[str, ...]
    sides: dict[str, LevelRun] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Every request of both sides completed."""
        runs = self.sides.values()
        return len(runs) == len(SIDES) and all(r.completed for run in runs for r in run.records)


@dataclass(slots=True)
class Comparison:
    """All rounds, finished or not."""

    endpoints: dict[str, Endpoint]
    rounds: list[Round] = field(default_factory=list)
    client: ClientLoad | None = None
    warmup_failed: int = 0
    """Of the requests that are not measured."""
    interrupted: bool = False


class Comparer:
    """Runs the rounds of ``settings``."""

    def __init__(self, settings: CompareSettings, bar: Bar) -> None:
        self._settings = settings
        self._bar = bar
        self._targets: dict[str, Target] = dict(zip(SIDES, (settings.a, settings.b), strict=True))

    async def run(self) -> Comparison:
        """Ask both sides; an interrupt keeps the rounds that were finished.

        Raises:
            EndpointError: an endpoint cannot be used at all.
        """
        async with make_client() as client:
            comparison = Comparison(
                {
                    side: await find_endpoint(client, target.base, target.model, target.key)
                    for side, target in self._targets.items()
                }
            )
            await self._warm_up(client, comparison)
            rounds = 0 if comparison.interrupted else self._settings.rounds
            self._bar.begin("compare", Limits(count=2 * rounds * self._settings.block))
            async with LagMonitor() as monitor:
                for number in range(rounds):
                    await self._round(client, comparison, number)
                    if comparison.interrupted:
                        break
                comparison.client = monitor.load()
        return comparison

    async def _warm_up(self, client: httpx.AsyncClient, comparison: Comparison) -> None:
        if self._settings.warmup == 0:
            return
        self._bar.begin("warm-up", Limits(count=2 * self._settings.warmup))
        for side in SIDES:
            await self._unmeasured(client, comparison, side, WARM_UP, 0, self._settings.warmup)
            if comparison.interrupted:
                return

    async def _unmeasured(
        self,
        client: httpx.AsyncClient,
        comparison: Comparison,
        side: str,
        part: str,
        first: int,
        count: int,
    ) -> None:
        run = await self._ask(client, comparison, side, part, first, count)
        comparison.warmup_failed += sum(not record.completed for record in run.records)
        comparison.interrupted = run.interrupted

    async def _round(self, client: httpx.AsyncClient, comparison: Comparison, number: int) -> None:
        order = SIDES if number % 2 == 0 else SIDES[::-1]
        this = Round(order)
        comparison.rounds.append(this)
        block, wake = self._settings.block, self._settings.wake
        for side in order:
            if wake:
                await self._unmeasured(client, comparison, side, WAKE, number * wake, wake)
                if comparison.interrupted:
                    return
            run = await self._ask(client, comparison, side, PART, number * block, block)
            this.sides[side] = run
            comparison.interrupted = run.interrupted
            if run.interrupted:
                return

    async def _ask(
        self,
        client: httpx.AsyncClient,
        comparison: Comparison,
        side: str,
        part: str,
        first: int,
        count: int,
    ) -> LevelRun:
        endpoint, river = comparison.endpoints[side], self._targets[side].river

        most = WAKE_TOKENS if part == WAKE else None

        def plan(index: int) -> Planned:
            return self._settings.requests.plan(endpoint, part, first + index, side, river, most)

        level = Level(concurrency=self._settings.concurrency)
        advance = _not_shown if part == WAKE else self._bar.advance
        runner = LevelRunner(client, level, Limits(count=count), plan, advance)
        return await runner.closed()


def _not_shown(record: Record) -> None:
    """A request that the progress bar does not count."""
