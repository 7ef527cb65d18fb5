"""Model runner V1, on a fake of vLLM's class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from vllm.v1.sample.logits_processor import MinPLogitsProcessor

from river_vllm.engine import stopwatch
from river_vllm.engine.runner import RiverRunnerMixin
from river_vllm.engine.scheduler import depths_of
from river_vllm.step.table import Pass, StepTable
from tests.unit.modes.support import Batch
from tests.unit.support import config_with

L = 12
ROWS = 6


class FakeRunner:
    """What the mixin uses of vLLM's V1 runner."""

    device = torch.device("cpu")
    use_async_scheduling = False

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=["b", "a"])
        self.forgotten: list[str] = []
        self.learnt: list[tuple[str, int]] = []
        self.current: Any = None
        self.modes = ["exit", "verified"]
        self.river_requests: Any = SimpleNamespace(forget=self.forgotten.extend, step=self.step)
        self.river_exits: Any = Policy()
        self.river_forward: Any = SimpleNamespace(
            run=self.run, river=SimpleNamespace(rest=lambda: setattr(self, "current", None))
        )
        self.river_costs: Any = SimpleNamespace(observe=self.observe)
        self._river_watch = stopwatch.Stopwatch(self.device)

    def step(self) -> Any:
        """A request of each of the modes."""
        drafts = [mode == "verified" for mode in self.modes]
        return [SimpleNamespace(request=SimpleNamespace(may_draft=one)) for one in drafts]

    def run(self, due: Pass) -> Any:
        self.current = due
        return due.inputs

    def observe(self, kind: str, rows: int, seconds: float) -> None:
        assert 0 < seconds < 60
        self.learnt.append((kind, rows))

    def execute_model(self, scheduler_output: Any, tensors: Any = None) -> Any:
        if tensors == "step":
            self._prepare_inputs(scheduler_output)
            self._model_forward(input_ids="ids", positions="p")
        return tensors

    def _prepare_inputs(self, scheduler_output: Any) -> None:
        """vLLM's: the batch's tensors."""

    def sample_tokens(self, grammar: Any) -> Any:
        assert self.current is None, "what is sampled or drafted is no part of the step"
        return SimpleNamespace(grammar=grammar)


class Policy:
    """What the mixin uses of the policy of exits: a prompt's rows, and two that may leave."""

    def table(self, step: Any) -> StepTable:
        return StepTable(L, [4, 1, 1], [1.0, 0.5, 0.5], [L, 1, 1], request=[0, 1, 1])

    head = staticmethod(lambda table: "river")
    spans = staticmethod(list)
    depths = staticmethod(lambda table: [-L, 6])
    kind = staticmethod(lambda done: "backbone")


class Runner(RiverRunnerMixin, FakeRunner):
    pass


@pytest.fixture
def runner() -> Runner:
    return Runner()


def test_a_step_is_a_pass_and_its_depths_are_on_the_output(runner: Runner) -> None:
    scheduled = SimpleNamespace(finished_req_ids={"gone"})
    assert runner.execute_model(scheduled, "step") == "step"
    assert runner.forgotten == ["gone"]
    assert runner.learnt == [("backbone", ROWS)]
    due = runner.current
    assert (due.head, due.in_step, due.exact, runner.river_exact) == ("river", True, True, True)
    runner.modes = ["verified", "verified"]  # they need no stock bits
    runner.execute_model(scheduled, "step")
    assert runner.current.exact is runner.river_exact is False
    sampled = runner.sample_tokens("grammar")
    assert sampled.grammar == "grammar"
    assert depths_of(sampled) == {"b": -L, "a": 6}
    runner.execute_model(scheduled, None)
    assert depths_of(runner.sample_tokens(None)) == {}, "a call without a step has none"


class Event:
    """An accelerator's event: it can be read once the device has come to it."""

    recorded: ClassVar[list[Event]] = []

    def __init__(self, device: torch.device, enable_timing: bool) -> None:
        assert device.type == "meta" and enable_timing
        self.passed = False

    def record(self) -> None:
        self.recorded.append(self)

    def synchronize(self) -> None:
        assert self.passed, "the host waits for the device"

    def elapsed_time(self, end: Event) -> float:
        assert self.passed and end.passed
        return 20.0


@pytest.mark.parametrize("late", [1, 2])
def test_an_accelerators_step_is_read_when_its_tokens_are_on_the_host(
    runner: Runner, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With asynchronous scheduling two steps later, on every rank."""
    monkeypatch.setattr(stopwatch.torch, "Event", Event)
    monkeypatch.setattr(Event, "recorded", [])
    runner.device = torch.device("meta")
    runner._river_watch = stopwatch.Stopwatch(runner.device, late)
    for step in range(4):
        runner.execute_model(SimpleNamespace(finished_req_ids=set()), "step")
        assert runner.learnt == [("backbone", ROWS)] * max(0, step + 1 - late)
        runner.sample_tokens(None)
        for event in Event.recorded[: 2 * (step + 2 - late)]:
            event.passed = True


class OperatorsProcessor:
    """May allow what the 4-bit head ranks low; of an operator's own nothing is known."""


@pytest.mark.parametrize(("more", "head"), [([], "river"), ([OperatorsProcessor()], "backbone")])
def test_rivers_head_makes_no_logits_that_are_all_looked_at(
    runner: Any, more: list[Any], head: str
) -> None:
    scheduler: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=1))
    stock = MinPLogitsProcessor(scheduler, torch.device("cpu"), False)
    runner.input_batch.logitsprocs = SimpleNamespace(all=[stock, *more])
    settings = {"threshold": 0.9, "max_rows": "all", "lm_head": "river"}
    runner.vllm_config = config_with(settings)
    model = SimpleNamespace(river=SimpleNamespace(num_layers=L))
    runner.get_model, runner.max_num_reqs = lambda: model, 1
    runner.river_begin()
    batch = Batch()
    batch.begin(("a", 1, 4))
    assert runner.river_exits.head(runner.river_exits.table(batch.scheduled)) == head
    assert runner.river_info()["costs"] == {}, "no decision goes by times, so none were taken"
