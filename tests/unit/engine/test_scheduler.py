"""The scheduler's part, on a fake of vLLM's class and with vLLM's own outputs."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from river_vllm.engine.scheduler import RiverSchedulerMixin


class FakeScheduler:
    """What the mixin uses of vLLM's scheduler."""

    hash_block_size = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.added: list[Any] = []
        self.requests: dict[str, Any] = {}
        self.num_spec_tokens = 0
        self.max_num_running_reqs = 8

    def _handle_stopped_request(self, request: Any) -> bool:
        return not request.resumable

    def add_request(self, request: Any) -> None:
        self.added.append(request)
        self.requests[request.request_id] = request

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        session.sampling_params = update.sampling_params


class Scheduler(RiverSchedulerMixin, FakeScheduler):
    pass


def scheduler(**river: Any) -> Scheduler:
    model_config = SimpleNamespace(
        hf_config=SimpleNamespace(), get_total_num_hidden_layers=lambda: 12
    )
    config = SimpleNamespace(additional_config={"river": river}, model_config=model_config)
    return Scheduler(vllm_config=config)


def request(request_id: str, **extra: Any) -> Any:
    params = SamplingParams(extra_args=extra)
    return SimpleNamespace(
        request_id=request_id, num_output_tokens=1, sampling_params=params, _block_hasher=None
    )


def test_streamed_input_goes_on_as_its_first_part_asked() -> None:
    """And keeps what is not River's: a logits processor of the operator's may read it."""
    made = scheduler()
    made.add_request(request("session", river={"threshold": 0.5}))
    later = request("session", own=1, river={"enabled": False})
    made.add_request(later)
    assert later.sampling_params.extra_args == {"own": 1, "river": {"threshold": 0.5}}


def test_streamed_input_is_counted_as_its_own_parameters_have_it_answered() -> None:
    made, session = scheduler(verify=4), request("session")
    made.add_request(session)
    drafted = session.river_mode
    biased = SimpleNamespace(sampling_params=SamplingParams(logit_bias={5: 1.0}))
    made._update_request_as_session(session, biased)
    assert session.river_mode is not drafted
    made._update_request_as_session(session, SimpleNamespace(sampling_params=SamplingParams()))
    assert session.river_mode is drafted


@pytest.mark.parametrize(
    ("drafts", "resumable", "computed"), [(4, True, 9), (4, False, 12), (0, True, 12)]
)
def test_streamed_input_goes_on_before_what_was_drafted_behind_the_end(
    drafts: int, resumable: bool, computed: int
) -> None:
    """The answer ended after 10 tokens of 12 that are computed: its last one is vLLM's to drop."""
    made = scheduler()
    made.num_spec_tokens = drafts
    ended = SimpleNamespace(resumable=resumable, num_computed_tokens=12, num_tokens=10)
    assert made._handle_stopped_request(ended) is not resumable
    assert ended.num_computed_tokens == computed


def test_a_request_made_in_python_hears_that_it_is_not_exact(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("river_vllm.engine.scheduler.isolate", lambda *args: None)
    monkeypatch.setattr("river_vllm.engine.scheduler.logger", logging.getLogger("test"))
    made = scheduler(resident_layers=4)
    made.add_request(request("a", river={"enabled": False}))
    made.add_request(request("b", river={"min_layers": 4}))
    assert len(made.added) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("request a: 'enabled' = false: must be true")
