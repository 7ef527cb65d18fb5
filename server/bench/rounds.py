"""Sends requests to both sides, round after round, in alternating order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from uuid import uuid4

from server.bench.options import API_PATHS, CompareOptions
from server.bench.prompts import WAKE, WARM_UP, prompts_of
from server.bench.request import Answer, ask, make_client
from server.cli.endpoint import Endpoint, find_endpoint, read_key
from server.cli.output import Steps

MEASURED = "compare"
LENGTHS = ("min_tokens", "max_completion_tokens")
"""Fields that could override the two tokens of a wake request."""
WAKE_TOKENS = 2
SIDES = ("A", "B")


@dataclass(slots=True)
class Turn:
    """The requests of one round to one side."""

    answers: list[Answer]
    seconds: float
    """From the start of the first request to the end of the last."""

    @property
    def whole(self) -> bool:
        """Whether every request completed."""
        return all(answer.error is None for answer in self.answers)


@dataclass(slots=True)
class Comparison:
    """The measured rounds of two endpoints."""

    endpoints: dict[str, Endpoint]
    rounds: list[dict[str, Turn]] = field(default_factory=list)
    """Both sides' turns of each finished round."""
    unmeasured_failed: int = 0
    """Incomplete requests of warm-up and waking."""
    interrupted: bool = False
    repeats: bool = False
    """Whether some prompt was sent more than once."""


class Comparer:
    """Runs the rounds of a comparison.

    Raises:
        RiverError: a file of prompts, or of a key, is not as expected.
        EndpointError: an endpoint cannot be used at all.
    """

    def __init__(self, options: CompareOptions, steps: Steps) -> None:
        sides = options.sides
        self._options = options
        self._steps = steps
        # Unique to this run: a running server may have an earlier run's prompts in its cache.
        self._run = uuid4().hex
        self._prompts = prompts_of(options.requests, options.comparison.warmup)
        key = read_key(sides.api_key_env, sides.api_key_file)
        key_b = key
        if sides.api_key_env_b is not None or sides.api_key_file_b is not None:
            key_b = read_key(sides.api_key_env_b, sides.api_key_file_b)
        self._found = Comparison(
            {
                "A": find_endpoint(options.a, sides.model_a, key, "--model-a"),
                "B": find_endpoint(options.b, sides.model_b, key_b, "--model-b"),
            }
        )
        self._river = {"A": sides.river_a, "B": sides.river_b}
        self._block = options.comparison.block or options.comparison.concurrency

    async def run(self) -> Comparison:
        """Run the rounds; Ctrl-C (a cancelled task) keeps the finished ones."""
        found = self._found
        async with make_client() as self._client:
            try:
                await self._rounds()
            except asyncio.CancelledError:
                found.interrupted = True
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
        settings = self._options.comparison
        asked = settings.warmup + len(found.rounds) * (settings.wake + self._block)
        found.repeats = self._prompts.repeats(asked)
        return found

    async def _rounds(self) -> None:
        settings = self._options.comparison
        for side in SIDES:
            await self._unmeasured(side, WARM_UP, 0, settings.warmup)
        self._steps.step("rounds", settings.rounds)
        for number in range(settings.rounds):
            turns = {}
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                await self._unmeasured(side, WAKE, number * settings.wake, settings.wake)
                turns[side] = await self._turn(side, MEASURED, number * self._block, self._block)
            self._found.rounds.append(turns)
            self._steps.done()

    async def _unmeasured(self, side: str, part: str, first: int, count: int) -> None:
        turn = await self._turn(side, part, first, count)
        self._found.unmeasured_failed += sum(a.error is not None for a in turn.answers)

    async def _turn(self, side: str, part: str, first: int, count: int) -> Turn:
        """Send ``count`` requests, with ``concurrency`` of them in flight."""
        numbers = iter(range(first, first + count))
        answers: list[Answer] = []

        async def work() -> None:
            for number in numbers:
                answers.append(await self._ask(side, part, number))

        began = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._options.comparison.concurrency, count)):
                group.create_task(work())
        return Turn(answers, perf_counter() - began)

    async def _ask(self, side: str, part: str, number: int) -> Answer:
        requests, endpoint = self._options.requests, self._found.endpoints[side]
        prompt = self._prompts(number, part)
        tokens = requests.output_tokens
        body: dict[str, Any] = {
            "model": endpoint.model,
            "max_tokens": min(tokens, WAKE_TOKENS) if part == WAKE else tokens,
            "temperature": requests.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if requests.api == "completions":
            body["prompt"] = prompt
        elif isinstance(prompt, str):
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["messages"] = prompt
        if requests.ignore_eos:
            body["ignore_eos"] = True
        if requests.cache_salt:
            body["cache_salt"] = f"{self._run}-{part}-{number}-{side}"
        if (river := self._river[side]) is not None:
            body["river"] = river
        body |= requests.extra_body or {}
        if part == WAKE:
            for length in LENGTHS:
                body.pop(length, None)
        url = endpoint.base + API_PATHS[requests.api]
        return await ask(self._client, url, endpoint.headers, body, requests.timeout)
