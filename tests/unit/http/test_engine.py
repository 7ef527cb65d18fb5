"""Signs of life that the front end asks the engine for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.http import engine
from server.http.engine import follow
from server.http.state import RiverState
from server.telemetry.progress import Progress
from tests.unit.http.support import river_state

INFO = {"num_layers": 2, "resident_layers": 2, "crossover": {"max_rows": 3}}


class Clock:
    """Seconds that pass while the server sleeps, and between two looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """Plays the engine client: answers, and the fourth time hangs, or ends with an error."""

    errored = False

    def __init__(self, end: str) -> None:
        self.asked, self.end = 0, end

    async def collective_rpc(self, method: str) -> Any:
        self.asked += 1
        if self.asked == 4:
            if self.end == "hangs":
                await asyncio.Event().wait()
            self.errored = True
            raise ConnectionError("gone")
        return [INFO]


def one_of_several(progress: Progress) -> RiverState:
    return river_state(progress=progress, single_process=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(engine.asyncio, "sleep", made.sleep)
    return made


@pytest.mark.parametrize("end", ["hangs", "fails"])
def test_another_processs_work_is_no_stall_and_a_hanging_engine_is(clock: Clock, end: str) -> None:
    """Whether this process has a request or not, it says what its neighbours say."""

    async def run(waits: bool) -> list[bool]:
        client = Client(end)
        progress = Progress(8.0, clock)
        progress.watch(lambda: waits)
        looks = []
        task = asyncio.create_task(follow(client, one_of_several(progress)))
        while client.asked < 4:
            await asyncio.tasks.sleep(0)
            looks.append(progress.ready)
        await asyncio.tasks.sleep(0)
        clock.now += 9.0
        looks.append(progress.ready)
        assert task.done() == (end == "fails")
        task.cancel()
        return looks

    for waits in (True, False):
        *alive, last = asyncio.run(run(waits))
        assert alive and all(alive)
        assert not last


def test_one_answer_that_fails_on_its_way_is_asked_for_again(clock: Clock) -> None:
    class Flaky(Client):
        async def collective_rpc(self, method: str) -> Any:
            self.asked += 1
            if self.asked in (2, 3):
                raise ConnectionError("lost")
            self.errored = self.asked == 6
            return [INFO]

    client = Flaky("answers")
    progress = Progress(8.0, clock)
    state = one_of_several(progress)
    asyncio.run(follow(client, state))
    assert state.engine == INFO
    assert client.asked == 6
    assert progress.ready


def test_answers_that_all_fail_are_a_stall(clock: Clock) -> None:
    class Lost(Client):
        async def collective_rpc(self, method: str) -> Any:
            self.asked += 1
            self.errored = self.asked == 6
            raise ConnectionError("lost")

    progress = Progress(8.0, clock)
    asyncio.run(follow(Lost("fails"), one_of_several(progress)))
    assert not progress.ready


def test_an_engine_that_has_failed_is_not_asked() -> None:
    client = Client("fails")
    client.errored = True
    asyncio.run(follow(client, one_of_several(Progress())))
    assert client.asked == 0


@pytest.mark.parametrize("waits", [True, False])
def test_the_only_process_is_ready_while_nothing_waits(clock: Clock, waits: bool) -> None:
    """Its own requests say whether a silent engine hangs."""

    async def run() -> bool:
        progress = Progress(8.0, clock)
        progress.watch(lambda: waits)
        client = Client("hangs")
        task = asyncio.create_task(follow(client, river_state(progress=progress)))
        while client.asked < 4:
            await asyncio.tasks.sleep(0)
            assert progress.ready
        clock.now += 9.0
        task.cancel()
        return progress.ready

    assert asyncio.run(run()) is not waits
