"""Progress of the engine, on a clock of its own."""

from __future__ import annotations

import pytest

from server.telemetry.progress import Progress


class Engine:
    """A clock, and whether any request is unfinished."""

    def __init__(self) -> None:
        self.now, self.busy = 1000.0, False
        self.progress = Progress(10.0, lambda: self.now)
        self.progress.watch(lambda: self.busy)

    def arrive(self) -> None:
        self.progress.arrival()
        self.busy = True


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_an_idle_engine_is_ready_for_ever(engine: Engine) -> None:
    engine.now += 1e6
    assert engine.progress.ready
    assert engine.progress.stalled_for() == 0.0


def test_work_that_waits_too_long_is_a_stall(engine: Engine) -> None:
    engine.arrive()
    engine.now += 9.9
    assert engine.progress.ready
    engine.now += 0.2
    assert not engine.progress.ready
    assert engine.progress.stalled_for() == pytest.approx(10.1)


@pytest.mark.parametrize("answers", [False, True])
def test_every_step_and_answer_is_a_sign_of_life(engine: Engine, answers: bool) -> None:
    engine.arrive()
    for _ in range(5):
        engine.now += 9.0
        if answers:
            engine.progress.ask()
            engine.progress.answered()
        else:
            engine.progress.step()
    assert engine.progress.ready


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_long_idle_time_is_no_stall_of_the_next_request(engine: Engine, looked_at: bool) -> None:
    engine.now += 500.0
    assert not looked_at or engine.progress.ready
    engine.arrive()
    engine.now += 5.0
    assert engine.progress.stalled_for() == 5.0


def test_more_arrivals_do_not_hide_a_stall(engine: Engine) -> None:
    engine.arrive()
    for _ in range(4):
        engine.now += 4.0
        engine.arrive()
    assert not engine.progress.ready


def test_a_stall_that_ends_is_over(engine: Engine) -> None:
    engine.arrive()
    engine.now += 50.0
    assert not engine.progress.ready
    engine.progress.step()
    assert engine.progress.ready
    engine.now += 50.0
    engine.busy = False
    assert engine.progress.ready


def test_an_idle_engine_that_does_not_answer_is_a_stall(engine: Engine) -> None:
    engine.now += 500.0
    engine.progress.ask()
    engine.now += 9.0
    assert engine.progress.ready
    engine.now += 2.0
    assert not engine.progress.ready
    engine.progress.answered()
    assert engine.progress.ready
    engine.now += 500.0
    assert engine.progress.ready
