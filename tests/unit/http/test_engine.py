"""Signs of life that the front end asks the engine for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.http import state as module
from server.http.state import RiverState, follow
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
    """Plays the engine client: the answers that are no failures, and then it has failed."""

    def __init__(self, *fails: bool, errored: bool = False) -> None:
        self.asked, self.fails, self.errored = 0, fails, errored

    async def collective_rpc(self, method: str) -> Any:
        self.asked += 1
        self.errored = self.asked == len(self.fails)
        if self.fails[self.asked - 1]:
            raise ConnectionError("lost")
        return [INFO]


def one_of_several(progress: Progress) -> RiverState:
    return river_state(progress=progress, single_process=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.asyncio, "sleep", made.sleep)
    return made


@pytest.mark.parametrize(
    ("fails", "ready"), [((False, True, True, False, False, False), True), ((True,) * 6, False)]
)
def test_an_answer_that_fails_is_asked_for_again_and_none_at_all_is_a_stall(
    clock: Clock, fails: tuple[bool, ...], ready: bool
) -> None:
    client, progress = Client(*fails), Progress(8.0, clock)
    state = one_of_several(progress)
    asyncio.run(follow(client, state))
    assert client.asked == len(fails)
    assert progress.ready is ready
    assert (state.engine == INFO) is ready


def test_an_engine_that_has_failed_is_not_asked() -> None:
    client = Client(errored=True)
    asyncio.run(follow(client, one_of_several(Progress())))
    assert client.asked == 0
