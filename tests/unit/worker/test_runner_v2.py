"""Model runner V2, on a fake of vLLM's class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.worker.feed import BatchFeed
from river_vllm.worker.output import depths_of
from river_vllm.worker.runner_v2 import river_runner_v2
from tests.unit.worker.support import rows


class FakeState:
    def __init__(self) -> None:
        self.river_feed = BatchFeed(12, "backbone")
        self.forgotten: list[set[str]] = []

    def forget_river(self, request_ids: set[str]) -> None:
        self.forgotten.append(request_ids)


class V2Runner:
    """What the mixin uses of vLLM's V2 runner: one decode row of each request per step."""

    def __init__(self) -> None:
        self.model_state = FakeState()
        self.positions = {"a": 4}
        self.observed: list[int] = []

    def get_model(self) -> Any:
        residency = SimpleNamespace(observe=self.observed.extend)
        return SimpleNamespace(river=SimpleNamespace(residency=residency))

    def execute_model(self, scheduler_output: Any, tensors: Any = None) -> str:
        assert self.model_state.forgotten, "requests are forgotten before the step"
        if scheduler_output.runs:
            batch = self.model_state.river_feed.begin([rows("a", 1, self.positions["a"])])
            batch.exit_layer[:] = 7
            self.positions["a"] += 1
        return "executed"

    def sample_tokens(self, grammar: Any) -> Any:
        return SimpleNamespace(grammar=grammar)


@pytest.fixture
def runner() -> Any:
    return river_runner_v2(V2Runner)()


def output(runs: bool = True) -> Any:
    return SimpleNamespace(finished_req_ids={"z"}, runs=runs)


def test_depths_of_a_step_go_on_its_output(runner: Any) -> None:
    assert runner.execute_model(output(), "tensors") == "executed"
    assert runner.model_state.forgotten == [{"z"}]
    sampled = runner.sample_tokens("grammar")
    assert (sampled.grammar, depths_of(sampled)) == ("grammar", {"a": 7})
    assert depths_of(runner.sample_tokens(None)) == {}


def test_a_step_without_forward_pass_does_not_repeat_the_last_one(runner: Any) -> None:
    runner.execute_model(output())
    runner.sample_tokens(None)
    runner.execute_model(output(runs=False))
    assert depths_of(runner.sample_tokens(None)) == {}


def test_two_runners_do_not_share_their_depths() -> None:
    first, second = river_runner_v2(V2Runner)(), river_runner_v2(V2Runner)()
    first.execute_model(output())
    assert depths_of(second.sample_tokens(None)) == {}


def test_the_class_says_what_it_is() -> None:
    cls = river_runner_v2(V2Runner)
    assert issubclass(cls, V2Runner)
    assert cls.__name__ == "RiverV2Runner"
