"""A whole evaluation: find the servers, ask, judge."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from server.bench.endpoint import Endpoint, find_endpoint, make_client
from server.bench.load import Limits
from server.bench.progress import Bar
from server.bench.record import Outcome, Record
from server.evaluate.asking import Asker
from server.evaluate.problem import JudgeError, Result
from server.evaluate.server_info import server_info
from server.evaluate.settings import EvalSettings


@dataclass(slots=True)
class Evaluation:
    """What was found out; complete unless ``interrupted``."""

    endpoints: dict[str, Endpoint]
    servers: dict[str, dict[str, Any]]
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    """From the first request to the last answer."""
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


class Evaluator:
    """Runs what ``settings`` describe."""

    def __init__(self, settings: EvalSettings, bar: Bar) -> None:
        self._settings = settings
        self._bar = bar

    async def run(self) -> Evaluation:
        """Ask every problem, then judge; an interrupt keeps the answers that have come.

        Raises:
            BenchError: an endpoint cannot be used at all, or answers cannot be judged here.
        """
        settings = self._settings
        notes = await settings.task.prepare()
        async with make_client() as client:
            endpoints = {
                side: await find_endpoint(client, target.base, target.model, target.key)
                for side, target in settings.sides.items()
            }
            servers = {side: await server_info(client, end) for side, end in endpoints.items()}
            evaluation = Evaluation(endpoints, servers, notes=notes)
            await self._ask(client, evaluation)
        await self._judge(evaluation)
        return evaluation

    async def _ask(self, client: httpx.AsyncClient, evaluation: Evaluation) -> None:
        settings = self._settings
        count = len(settings.task.problems) * len(settings.sides)
        self._bar.begin(settings.task.name, Limits(count=count))
        asker = Asker(client, settings, evaluation.endpoints, self._bar.advance)
        asked = await asker.run()
        evaluation.results, evaluation.seconds = asked.results, asked.seconds
        evaluation.interrupted = asked.interrupted

    async def _judge(self, evaluation: Evaluation) -> None:
        """After all answers, so that judging takes no time from a server on this machine."""
        places = {problem.id: n for n, problem in enumerate(self._settings.task.problems)}
        self._bar.begin("judging", Limits(count=len(evaluation.results)))

        async def one(at: int) -> None:
            result = evaluation.results[at]
            evaluation.results[at] = await self._judged(result, places[result.id])
            self._bar.advance(Record(at, 0.0, outcome=evaluation.results[at].outcome))

        try:
            await asyncio.gather(*map(one, range(len(evaluation.results))))
        except asyncio.CancelledError:
            evaluation.interrupted = True
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()

    async def _judged(self, result: Result, index: int) -> Result:
        if result.outcome is not Outcome.COMPLETED or result.text is None:
            return result
        try:
            verdict = await self._settings.task.judge(index, result.text)
        except JudgeError as error:
            return replace(
                result, outcome=Outcome.FAILED, error_class="not judged", error=str(error)
            )
        return replace(result, verdict=verdict)
