"""Asking every problem on every side, a few requests at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import httpx

from server.bench.endpoint import Endpoint
from server.bench.record import Record
from server.evaluate.problem import Result
from server.evaluate.request import Answer, Question, ask
from server.evaluate.settings import EvalSettings


@dataclass(slots=True)
class Asked:
    """What came back, in the order of the problems."""

    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


def order(problems: int, sides: Sequence[str]) -> list[tuple[int, str]]:
    """Who is asked what when: both sides by turns, A first in every other problem.

    Drift of the machine, and any advantage of coming second, then meet both alike.
    """
    return [
        (index, side)
        for index in range(problems)
        for side in (sides if index % 2 == 0 else tuple(reversed(sides)))
    ]


class Asker:
    """Sends the requests of ``settings``. A cancelled task, as by Ctrl-C, keeps what has come."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        settings: EvalSettings,
        endpoints: Mapping[str, Endpoint],
        on_end: Callable[[Record], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._endpoints = endpoints
        self._on_end = on_end
        self._results: dict[tuple[int, str], Result] = {}

    async def run(self) -> Asked:
        settings = self._settings
        waiting = deque(order(len(settings.task.problems), tuple(settings.sides)))
        asked, started = Asked(), perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(settings.concurrency):
                    group.create_task(self._work(waiting))
        except asyncio.CancelledError:
            asked.interrupted = True
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        asked.seconds = perf_counter() - started
        asked.results = [self._results[key] for key in sorted(self._results)]
        return asked

    async def _work(self, waiting: deque[tuple[int, str]]) -> None:
        while waiting:
            await self._one(*waiting.popleft())

    async def _one(self, index: int, side: str) -> None:
        record, answer = Record(index, perf_counter()), Answer()
        try:
            answer = await ask(self._client, self._question(index, side), record)
        finally:
            self._results[index, side] = self._result(index, side, record, answer)
            self._on_end(record)

    def _question(self, index: int, side: str) -> Question:
        settings, endpoint = self._settings, self._endpoints[side]
        sampling, problem = settings.sampling, settings.task.problems[index]
        river = settings.sides[side].river
        return Question(
            url=endpoint.url(sampling.api),
            headers=endpoint.headers,
            body=sampling.body(endpoint.model, problem.prompt, index, settings.stop, river),
            timeout=settings.timeout,
        )

    def _result(self, index: int, side: str, record: Record, answer: Answer) -> Result:
        problem = self._settings.task.problems[index]
        return Result(
            side=side,
            id=problem.id,
            prompt=problem.prompt,
            expected=problem.expected,
            outcome=record.outcome,
            error_class=record.error_class,
            error=record.error,
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=record.finish_reason,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            seconds=record.ended - record.sent,
            river=record.river,
            river_trace=answer.river_trace,
        )
