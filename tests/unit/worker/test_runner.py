"""Model runner V1, on a fake of vLLM's class."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from river_vllm.compat import CompilationMode
from river_vllm.request import RiverSettings
from river_vllm.router.plan import RowPlan
from river_vllm.worker.feed import BatchFeed
from river_vllm.worker.output import depths_of
from river_vllm.worker.runner import RiverRunnerMixin
from river_vllm.worker.split import SubStep
from tests.unit.worker.support import free, rows

DEFAULTS = RiverSettings(True, 0.9, 2)
L = 12


class FakeRunner:
    """What the mixin uses of vLLM's V1 runner."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(
            req_ids=["b", "a", "c"],
            num_computed_tokens_cpu=np.array([0, 9, 5, 77]),
        )
        self.query_start_loc = SimpleNamespace(np=np.array([0, 4, 5, 6, 6]))
        self.requests = {
            "a": request(9, {"river": {"threshold": 0.1, "min_layers": 4}}),
            "b": request(7, None),
            "c": request(2, {"river": "nonsense"}),
            "gone": request(2, None),
        }
        self.seen: list[Any] = []
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(mode=CompilationMode.NONE)
        )

        self.plan = RowPlan()
        self.observed: list[int] = []
        self.residency = SimpleNamespace(offloads=False, observe=self.observed.extend)

    def get_model(self) -> Any:
        river = SimpleNamespace(plan=self.plan, residency=self.residency)
        return SimpleNamespace(river=river)

    def execute_model(self, scheduler_output: Any, tensors: Any = None) -> str:
        self.seen.append(tensors)
        return "executed"

    def _model_forward(self, input_ids: Any = None, **kwargs: Any) -> str:
        self.seen.append(kwargs)
        if "river_batch" in kwargs:
            kwargs["river_batch"].exit_layer[:] = 6
        return "hidden"

    def sample_tokens(self, grammar: Any) -> Any:
        return SimpleNamespace(grammar=grammar)


class Runner(RiverRunnerMixin, FakeRunner):
    pass


def request(prompt: int, extra_args: Any) -> Any:
    params = SamplingParams(extra_args=extra_args)
    return SimpleNamespace(num_prompt_tokens=prompt, sampling_params=params)


@pytest.fixture
def runner() -> Runner:
    runner = Runner()
    runner.set_up_river(BatchFeed(L, "backbone"), DEFAULTS)
    return runner


def test_rows_come_from_the_persistent_batch_in_its_order(runner: Runner) -> None:
    assert runner._river_rows() == [
        rows("b", 4, 0, prompt=7, start=0, settings=DEFAULTS),
        rows("a", 1, 9, prompt=9, start=4, settings=RiverSettings(True, 0.1, 4)),
        rows("c", 1, 5, prompt=2, start=5, settings=RiverSettings(False, 1.0, 2)),
    ]


def test_a_request_without_sampling_parameters_takes_the_defaults(runner: Runner) -> None:
    runner.requests["a"].sampling_params = None
    assert runner._river_rows()[1].settings == DEFAULTS


def test_the_forward_pass_gets_the_batch_and_the_output_its_depths(runner: Runner) -> None:
    output = runner._model_forward("ids", positions="p")
    assert output == "hidden"
    passed = runner.seen[-1]
    assert passed["positions"] == "p"
    assert passed["river_batch"].units == [free(4, RiverSettings(True, 0.1, 4))]
    sampled = runner.sample_tokens("grammar")
    assert sampled.grammar == "grammar"
    assert depths_of(sampled) == {"b": -L, "a": 6, "c": L}


def test_a_step_in_which_nothing_can_exit_is_vllms_own(runner: Runner) -> None:
    """No batch for the router, and vLLM's compiled forward where there is one."""
    runner.requests["a"].sampling_params.extra_args = {"river": {"enabled": False}}
    runner._model_forward("ids")
    assert "river_batch" not in runner.seen[-1]
    assert depths_of(runner.sample_tokens(None)) == {"b": -L, "a": L, "c": L}


def test_with_layers_out_of_memory_every_step_is_routed(runner: Runner) -> None:
    runner.residency.offloads = True
    runner.requests["a"].sampling_params.extra_args = {"river": {"enabled": False}}
    runner._model_forward("ids")
    assert runner.seen[-1]["river_batch"].units == []
    assert sorted(runner.observed) == [-L, L, L]


def test_a_compiling_engine_runs_exact_rows_first_and_the_others_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.vllm_config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
    monkeypatch.setattr(SubStep, "forward_context", lambda self, config, groups: nullcontext())
    runner.attn_groups = []
    whole, again = torch.zeros(6, 2), torch.ones(1, 2)
    passes: list[Any] = []

    def forward(self: Any, input_ids: Any = None, positions: Any = None, **kwargs: Any) -> Any:
        passes.append((input_ids.tolist(), positions.tolist(), kwargs.get("river_batch")))
        if passes[1:]:
            kwargs["river_batch"].exit_layer[:] = 3
            return again
        return whole

    monkeypatch.setattr(FakeRunner, "_model_forward", forward)
    output = runner._model_forward(input_ids=torch.arange(6), positions=torch.arange(10, 16))
    assert passes[0] == ([0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15], None)
    assert passes[1][:2] == ([4], [14])
    assert passes[1][2].units == [free(0, RiverSettings(True, 0.1, 4))]
    assert output[:, 0].tolist() == [0, 0, 0, 0, 1, 0]
    assert depths_of(runner.sample_tokens(None)) == {"b": -L, "a": 3, "c": L}


def test_the_river_head_serves_steps_of_exiting_decode_rows_only(runner: Runner) -> None:
    """The prompt's rows and the exact request of this batch keep the exact head."""
    runner._model_forward("ids")
    assert runner.plan.river_head is False
    runner.input_batch.req_ids = ["a"]
    runner.input_batch.num_computed_tokens_cpu = np.array([9])
    runner.query_start_loc.np = np.array([0, 1])
    runner._model_forward("ids")
    assert runner.plan.river_head is True
    runner.sample_tokens(None)
    assert runner.plan.river_head is False
    runner.requests["a"].sampling_params.logprobs = 2
    runner._model_forward("ids")
    assert runner.plan.river_head is False


def test_depths_are_handed_over_once(runner: Runner) -> None:
    runner._model_forward("ids")
    runner.sample_tokens(None)
    assert depths_of(runner.sample_tokens(None)) == {}


def test_requests_that_ended_are_forgotten_before_the_step(runner: Runner) -> None:
    runner._model_forward("ids")
    runner.sample_tokens(None)
    runner._model_forward("ids")
    # The same token once more is a replay of its depth.
    assert [unit.forced for unit in runner.seen[-1]["river_batch"].units] == [True]
    finished = SimpleNamespace(finished_req_ids={"a"})
    assert runner.execute_model(finished, "tensors") == "executed"
    assert runner.seen[-1] == "tensors"
    runner._model_forward("ids")
    assert [unit.forced for unit in runner.seen[-1]["river_batch"].units] == [False]
