"""The scheduler's part, on a fake of vLLM's class and with vLLM's own outputs."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from river_vllm.config import RiverConfig
from river_vllm.depths import attach
from river_vllm.request import RiverSettings
from river_vllm.scheduler import RiverScheduler, RiverSchedulerMixin


class FakeScheduler:
    """What the mixin uses of vLLM's scheduler."""

    hash_block_size = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.added: list[Any] = []
        self.outputs: dict[int, EngineCoreOutputs] = {}
        self.requests: dict[str, Any] = {}

    def add_request(self, request: Any) -> None:
        self.added.append(request)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        return self.outputs


class Scheduler(RiverSchedulerMixin, FakeScheduler):
    pass


def vllm_config(river: dict[str, Any] | None = None, asynchronous: bool = False) -> Any:
    return SimpleNamespace(
        additional_config={"river": river} if river else {},
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(), get_total_num_hidden_layers=lambda: 12
        ),
        scheduler_config=SimpleNamespace(async_scheduling=asynchronous),
    )


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(vllm_config=vllm_config({"threshold": 0.25, "prefill": "sequence"}))


def outputs(**tokens: list[int]) -> EngineCoreOutputs:
    return EngineCoreOutputs(outputs=[EngineCoreOutput(i, t) for i, t in tokens.items()])


def update(scheduler: Scheduler, depths: dict[str, int] | None) -> dict[str, list[int] | None]:
    runner_output = SimpleNamespace()
    if depths is not None:
        attach(runner_output, depths)
    result = scheduler.update_from_output(None, runner_output)
    assert result is scheduler.outputs
    return {
        output.request_id: None if output.routed_experts is None else output.routed_experts.tolist()
        for client in result.values()
        for output in client.outputs
    }


def test_every_new_token_gets_its_requests_depth(scheduler: Scheduler) -> None:
    scheduler.outputs = {0: outputs(a=[7], b=[8, 9]), 1: outputs(c=[10])}
    found = update(scheduler, {"a": 3, "b": 5, "c": -12, "other": 4})
    assert found == {"a": [3], "b": [5, 5], "c": [-12]}


def test_outputs_without_tokens_or_depths_stay_as_they_are(scheduler: Scheduler) -> None:
    scheduler.outputs = {0: outputs(a=[], b=[8])}
    assert update(scheduler, {"a": 3}) == {"a": None, "b": None}
    assert update(scheduler, None) == {"a": None, "b": None}


def test_depths_survive_the_way_to_the_front_end(scheduler: Scheduler) -> None:
    scheduler.outputs = {0: outputs(a=[7])}
    update(scheduler, {"a": -30})
    sent = MsgpackEncoder().encode(scheduler.outputs[0])
    received = MsgpackDecoder(EngineCoreOutputs).decode(sent)
    depths = received.outputs[0].routed_experts
    assert depths.dtype == np.int16
    assert depths.tolist() == [-30]


def test_a_new_request_is_isolated_with_its_own_settings(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("river_vllm.scheduler.isolate", lambda *args: calls.append(args))
    mine = SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args={"river": {"threshold": 0.5, "min_layers": 4}})
    )
    default = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=None))
    scheduler.add_request(mine)
    scheduler.add_request(default)
    config = RiverConfig(threshold=0.25, prefill="sequence")
    assert calls == [
        (mine, RiverSettings(True, 0.5, 4), config, 16),
        (default, RiverSettings(True, 0.25, 1), config, 16),
    ]
    assert scheduler.added == [mine, default]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_scheduler_of_the_engines_mode_is_made(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core.sched import async_scheduler
    from vllm.v1.core.sched import scheduler as plain

    for cls in (plain.Scheduler, async_scheduler.AsyncScheduler):
        monkeypatch.setattr(cls, "__init__", lambda self, *a, **k: None)
    made = RiverScheduler(vllm_config=vllm_config({"threshold": 0.5}, asynchronous))
    assert isinstance(made, RiverSchedulerMixin)
    assert isinstance(made, plain.Scheduler)
    assert isinstance(made, async_scheduler.AsyncScheduler) is asynchronous
    assert made._river_defaults.threshold == 0.5


def test_a_request_made_in_python_hears_that_it_is_not_exact(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("river_vllm.scheduler.isolate", lambda *args: None)
    monkeypatch.setattr("river_vllm.scheduler.logger", logging.getLogger("test"))
    scheduler = Scheduler(vllm_config=vllm_config({"resident_layers": 4}))
    for request_id, settings in (("a", {"enabled": False}), ("b", {"min_layers": 4})):
        params = SimpleNamespace(extra_args={"river": settings})
        scheduler.add_request(SimpleNamespace(sampling_params=params, request_id=request_id))
    assert len(scheduler.added) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("request a: 'enabled' = false: must be true")
