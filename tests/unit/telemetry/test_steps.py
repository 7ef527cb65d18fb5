"""Steps of the engine as signs of life."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from river_vllm.compat import StatLoggerBase
from server.telemetry import steps
from server.telemetry.progress import Progress
from server.telemetry.steps import RiverStepLogger, on_step


@pytest.fixture(autouse=True)
def _no_watchers() -> Iterator[None]:
    steps._watchers.clear()
    yield
    steps._watchers.clear()


def stalled() -> tuple[Progress, list[float]]:
    now = [0.0]
    progress = Progress(10, lambda: now[0])
    progress.watch(lambda: True)
    now[0] = 50.0
    return progress, now


def logger() -> RiverStepLogger:
    config: Any = None
    return RiverStepLogger(config, 0)


def test_a_step_without_outputs_counts() -> None:
    progress, _ = stalled()
    on_step(progress)
    assert not progress.ready
    logger().record(scheduler_stats=None, iteration_stats=None, mm_cache_stats=None, engine_idx=0)
    assert progress.ready


def test_the_last_server_of_a_process_is_the_one_that_is_told() -> None:
    (old, _), (new, _) = stalled(), stalled()
    on_step(old)
    on_step(new)
    logger().record(None, None)
    assert (old.ready, new.ready) == (False, True)


def test_vllm_can_make_one() -> None:
    made = logger()
    assert isinstance(made, StatLoggerBase)
    made.log_engine_initialized()
    made.log()
