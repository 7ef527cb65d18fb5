"""HumanEval: functions to be written, judged by tests (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.bench.endpoint import Api
from server.bench.errors import BenchError
from server.evaluate.data import DataFile, Row, Selection
from server.evaluate.problem import JudgeError, Problem, Verdict
from server.evaluate.sandbox.isolation import Isolation, find_isolation
from server.evaluate.sandbox.limits import Limits
from server.evaluate.sandbox.program import PASSED, ProgramResult, SandboxError, run_program
from server.evaluate.tasks.code import ASKED, completed, from_chat, with_tests

INSTRUCTION = "Complete this Python function. Answer with the whole function in one code block."


@dataclass(frozen=True, slots=True)
class _Reference:
    prompt: str
    tests: str
    entry_point: str


class HumanEval:
    """Rows with ``task_id``, ``prompt``, ``entry_point`` and ``test``.

    Equal programs are run once, so that two sides with the same answer get the same verdict.
    """

    name = "humaneval"

    def __init__(
        self, selection: Selection, api: Api, limits: Limits | None = None, workers: int = 1
    ) -> None:
        """Raises:
        BenchError: a row is not as expected; the message names its line and field.
        """
        self._api = api
        self._limits = limits or Limits()
        self._slots = asyncio.Semaphore(workers)
        self._isolation: Isolation | None = None
        self._runs: dict[str, asyncio.Task[ProgramResult]] = {}
        shots = _examples(selection)
        rows, data = selection.asked, selection.data
        self._references = [_checked(data, row) for row in rows]
        ids = [_id(data, row) for row in rows]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise BenchError(f"{data.option}: 'task_id' = {twice!r} stands in more than one row")
        self.problems: Sequence[Problem] = [
            Problem(name, _chat(item) if api == "chat" else shots + item.prompt)
            for name, item in zip(ids, self._references, strict=True)
        ]

    def stop(self, api: Api) -> Sequence[str]:
        return () if api == "chat" else ASKED

    def describe(self) -> dict[str, Any]:
        return {"limits": asdict(self._limits)}

    async def prepare(self) -> list[str]:
        self._isolation = await find_isolation()
        return [self._isolation.note] if self._isolation.note else []

    async def judge(self, index: int, text: str) -> Verdict:
        item = self._references[index]
        if self._api == "chat":
            program = from_chat(item.prompt, item.entry_point, text)
        else:
            program = completed(item.prompt, text)
        if program is None:
            return Verdict(False, None, "no code")
        try:
            ran = await self._run(with_tests(program, item.tests, item.entry_point))
        except SandboxError as error:
            raise JudgeError(str(error)) from None
        return Verdict(ran.result == PASSED, program, ran.result, ran.detail)

    async def _run(self, source: str) -> ProgramResult:
        if source not in self._runs:
            self._runs[source] = asyncio.create_task(self._run_now(source))
        return await self._runs[source]

    async def _run_now(self, source: str) -> ProgramResult:
        async with self._slots:
            if self._isolation is None:
                self._isolation = await find_isolation()
            return await run_program(source, self._limits, self._isolation)


def _examples(selection: Selection) -> str:
    source = selection.shots_file or selection.data
    texts = []
    for row in selection.shots:
        try:
            texts.append(f"{row.text('prompt')}{row.text('canonical_solution').rstrip()}\n\n\n")
        except ValueError as error:
            raise source.error(row, error) from None
    return "".join(texts)


def _checked(data: DataFile, row: Row) -> _Reference:
    try:
        entry_point = row.text("entry_point")
        if not entry_point.isidentifier():
            raise ValueError(f"'entry_point' = {entry_point!r}: expected a name")
        return _Reference(row.text("prompt"), row.text("test"), entry_point)
    except ValueError as error:
        raise data.error(row, error) from None


def _id(data: DataFile, row: Row) -> str:
    try:
        return row.text("task_id")
    except ValueError as error:
        raise data.error(row, error) from None


def _chat(item: _Reference) -> list[dict[str, Any]]:
    content = f"{INSTRUCTION}\n\n```python\n{item.prompt.strip()}\n```"
    return [{"role": "user", "content": content}]
