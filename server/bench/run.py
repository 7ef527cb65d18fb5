"""``river-vllm bench URL``: one endpoint, level after level."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import httpx

from server.bench.datasets import WARM_UP
from server.bench.endpoint import Endpoint, find_endpoint, make_client
from server.bench.load import Level, LevelRun, LevelRunner, Limits
from server.bench.measure.level import LevelReport, measure_level
from server.bench.measure.warnings import level_warnings
from server.bench.progress import Bar
from server.bench.record import Record
from server.bench.request import Planned
from server.bench.settings import RunSettings


@dataclass(slots=True)
class LevelResult:
    """A level with what it measured and what it is made of."""

    level: Level
    report: LevelReport
    records: list[Record]


@dataclass(slots=True)
class RunResult:
    """A whole run; complete unless ``interrupted``."""

    endpoint: Endpoint
    levels: list[LevelResult] = field(default_factory=list)
    warmup_sent: int = 0
    warmup_failed: int = 0
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)


class Benchmark:
    """Runs the levels of ``settings`` one after another."""

    def __init__(self, settings: RunSettings, bar: Bar) -> None:
        self._settings = settings
        self._bar = bar

    async def run(self) -> RunResult:
        """Measure every level; an interrupt keeps what was measured.

        Raises:
            EndpointError: the endpoint cannot be used at all.
        """
        target = self._settings.target
        async with make_client() as client:
            endpoint = await find_endpoint(client, target.base, target.model, target.key)
            result = RunResult(endpoint)
            for level in self._settings.levels:
                if not await self._warm_up(client, result, level):
                    break
                run = await self._measure(client, endpoint, level)
                result.levels.append(self._result(run))
                if run.interrupted:
                    result.interrupted = True
                    break
        result.warnings = self._run_warnings(result)
        return result

    async def _warm_up(self, client: httpx.AsyncClient, result: RunResult, level: Level) -> bool:
        """Requests that count for nothing; whether the run goes on."""
        if self._settings.warmup == 0:
            return True
        limits = Limits(count=self._settings.warmup)
        self._bar.begin(f"{level} warm-up", limits)
        first = result.warmup_sent

        def plan(index: int) -> Planned:
            requests = replace(self._settings.requests, cancel_rate=0.0)
            return requests.plan(result.endpoint, WARM_UP, first + index)

        load = Level(concurrency=level.concurrency or 1)
        run = await LevelRunner(client, load, limits, plan, self._bar.advance).closed()
        result.warmup_sent += len(run.records)
        result.warmup_failed += sum(not record.completed for record in run.records)
        result.interrupted = run.interrupted
        return not run.interrupted

    async def _measure(
        self, client: httpx.AsyncClient, endpoint: Endpoint, level: Level
    ) -> LevelRun:
        settings = self._settings

        def plan(index: int) -> Planned:
            return settings.requests.plan(endpoint, str(level), index)

        self._bar.begin(str(level), settings.limits)
        runner = LevelRunner(client, level, settings.limits, plan, self._bar.advance)
        if level.rate is None:
            return await runner.closed()
        return await runner.open(settings.arrivals, settings.requests.seed)

    def _result(self, run: LevelRun) -> LevelResult:
        report = measure_level(run.records, run.duration, self._settings.slos)
        report = replace(report, client=run.client)
        warnings = level_warnings(report, self._settings.requests.fixed_lengths)
        return LevelResult(run.level, replace(report, warnings=warnings), run.records)

    def _run_warnings(self, result: RunResult) -> list[str]:
        warnings = []
        if result.interrupted:
            warnings.append("interrupted: the figures are of what had ended by then")
        if result.warmup_failed:
            warnings.append(
                f"{result.warmup_failed} of {result.warmup_sent} warm-up requests did not complete"
            )
        sent = result.warmup_sent + sum(level.report.counts.sent for level in result.levels)
        requests = self._settings.requests
        if requests.dataset.repeats(sent) and not requests.body.cache_salt:
            warnings.append(
                f"some of {sent} prompts were asked more than once, which a prefix cache answers "
                "faster; use more rows, or --cache-salt (vLLM)"
            )
        return warnings


def exit_status(settings: RunSettings, result: RunResult) -> int:
    """130 if interrupted; 1 if a level has nothing completed or too many failures; else 0."""
    if result.interrupted:
        return 130
    for level in result.levels:
        counts = level.report.counts
        only_cancelled = counts.sent > 0 and counts.cancelled == counts.sent
        if counts.completed == 0 and not only_cancelled:
            return 1
        if counts.bad > settings.max_failure_share * counts.sent:
            return 1
    return 0 if result.levels else 1
