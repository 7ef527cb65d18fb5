"""The scheduler's part, on a fake of vLLM's class and with vLLM's own outputs."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from river_vllm.engine.scheduler import RiverSchedulerMixin
from river_vllm.modes.mode import put_depths
from river_vllm.modes.verified import MARK


class FakeScheduler:
    """What the mixin uses of vLLM's scheduler."""

    hash_block_size = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.added: list[Any] = []
        self.outputs: dict[int, EngineCoreOutputs] = {}
        self.requests: dict[str, Any] = {}
        self.num_spec_tokens = 0
        self.max_num_running_reqs = 8

    def _handle_stopped_request(self, request: Any) -> bool:
        return not request.resumable

    def add_request(self, request: Any) -> None:
        self.added.append(request)
        self.requests[request.request_id] = request

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        return self.outputs

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        session.sampling_params = update.sampling_params


class Scheduler(RiverSchedulerMixin, FakeScheduler):
    pass


def vllm_config(river: dict[str, Any]) -> Any:
    return SimpleNamespace(
        additional_config={"river": river},
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(), get_total_num_hidden_layers=lambda: 12
        ),
    )


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(vllm_config=vllm_config({"threshold": 0.25, "prefill": "sequence"}))


def arrive(scheduler: Scheduler, request_id: str, made: int = 1, **river: Any) -> Any:
    """A request that has ``made`` output tokens."""
    request = SimpleNamespace(
        request_id=request_id,
        num_output_tokens=made,
        sampling_params=SamplingParams(extra_args={"river": river} if river else None),
        _block_hasher=None,
    )
    scheduler.add_request(request)
    return request


def outputs(**tokens: list[int]) -> EngineCoreOutputs:
    return EngineCoreOutputs(outputs=[EngineCoreOutput(i, t) for i, t in tokens.items()])


def update(
    scheduler: Scheduler,
    depths: dict[str, int] | None,
    sampled: dict[str, list[int]] | None = None,
    drafts: dict[str, list[int]] | None = None,
) -> dict[str, list[int] | None]:
    """A step in which the worker sampled one token for each request, or ``sampled``."""
    ids = list(depths or {})
    runner_output = SimpleNamespace(
        req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
        sampled_token_ids=[(sampled or {}).get(request_id, [1]) for request_id in ids],
    )
    if depths is not None:
        put_depths(runner_output, depths)
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens=drafts or {})
    result = scheduler.update_from_output(scheduled, runner_output)
    assert result is scheduler.outputs
    return {
        output.request_id: None if output.routed_experts is None else output.routed_experts.tolist()
        for client in result.values()
        for output in client.outputs
    }


def test_each_request_is_counted_in_its_own_mode() -> None:
    """Drafts of one, the depth of another; a stop has cut the last kept token off."""
    scheduler = Scheduler(vllm_config=vllm_config({"verify": 4}))
    arrive(scheduler, "new", made=0)
    arrive(scheduler, "drafted")
    arrive(scheduler, "cut")
    arrive(scheduler, "exits", threshold=0.5)
    arrive(scheduler, "off", enabled=False)
    sampled = {"drafted": [5, 6, 9], "cut": [5, 6, 9]}
    drafts = {"drafted": [5, 6, 7], "cut": [5, 6]}
    depths = {"new": -12, "drafted": 12, "cut": 12, "exits": 3, "off": 12}
    scheduler.outputs = {
        0: outputs(new=[1], drafted=[5, 6, 9], cut=[5, 6], exits=[1], off=[1]),
    }
    assert update(scheduler, depths, sampled, drafts) == {
        "new": [MARK | 1 << 12],
        "drafted": [MARK | 1 | 2 | 3 << 2, MARK | 1, MARK],
        "cut": [MARK | 1 | 2 | 2 << 2, MARK | 1],
        "exits": [3],
        "off": [12],
    }


def test_streamed_input_goes_on_as_its_first_part_asked(scheduler: Scheduler) -> None:
    """And keeps what is not River's: a logits processor of the operator's may read it."""
    arrive(scheduler, "session", threshold=0.5)
    later = SimpleNamespace(
        request_id="session",
        sampling_params=SamplingParams(extra_args={"own": 1, "river": {"enabled": False}}),
        _block_hasher=None,
    )
    scheduler.add_request(later)
    assert later.sampling_params.extra_args == {"own": 1, "river": {"threshold": 0.5}}


def test_streamed_input_is_counted_as_its_own_parameters_have_it_answered() -> None:
    scheduler = Scheduler(vllm_config=vllm_config({"verify": 4}))
    session = arrive(scheduler, "session")
    drafted = session.river_mode
    biased = SimpleNamespace(sampling_params=SamplingParams(logit_bias={5: 1.0}))
    scheduler._update_request_as_session(session, biased)
    assert session.river_mode is not drafted
    scheduler._update_request_as_session(session, SimpleNamespace(sampling_params=SamplingParams()))
    assert session.river_mode is drafted


@pytest.mark.parametrize(
    ("drafts", "resumable", "computed"), [(4, True, 9), (4, False, 12), (0, True, 12)]
)
def test_streamed_input_goes_on_before_what_was_drafted_behind_the_end(
    scheduler: Scheduler, drafts: int, resumable: bool, computed: int
) -> None:
    """The answer ended after 10 tokens of 12 that are computed: its last one is vLLM's to drop."""
    scheduler.num_spec_tokens = drafts
    request = SimpleNamespace(resumable=resumable, num_computed_tokens=12, num_tokens=10)
    assert scheduler._handle_stopped_request(request) is not resumable
    assert request.num_computed_tokens == computed


def test_a_request_made_in_python_hears_that_it_is_not_exact(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("river_vllm.engine.scheduler.isolate", lambda *args: None)
    monkeypatch.setattr("river_vllm.engine.scheduler.logger", logging.getLogger("test"))
    scheduler = Scheduler(vllm_config=vllm_config({"resident_layers": 4}))
    for request_id, settings in (("a", {"enabled": False}), ("b", {"min_layers": 4})):
        params = SimpleNamespace(extra_args={"river": settings})
        scheduler.add_request(SimpleNamespace(sampling_params=params, request_id=request_id))
    assert len(scheduler.added) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("request a: 'enabled' = false: must be true")
