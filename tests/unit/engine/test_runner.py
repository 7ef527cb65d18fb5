"""Model runner V1, on a fake of vLLM's class."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from river_vllm.depths import depths_of
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from river_vllm.engine import runner as module
from river_vllm.engine.runner import RiverRunnerMixin
from river_vllm.step.table import StepTable

L = 12
ROWS = 6


class FakeRunner:
    """What the mixin uses of vLLM's V1 runner; a pass returns what it was called with."""

    vllm_config = "config"
    device = torch.device("cpu")
    use_async_scheduling = False

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=["b", "a"])
        self.river_steps: Any = Mode()
        self.river: Any = FakeRiver()

    def get_model(self) -> Any:
        return SimpleNamespace(river=self.river)

    def execute_model(self, scheduler_output: Any, tensors: Any = None) -> Any:
        if tensors == "step":
            self.output = self._model_forward("ids", "positions")
        return tensors

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        names = ("input_ids", "positions", "intermediate_tensors", "inputs_embeds")
        return dict(zip(names, args, strict=False)) | kwargs

    def sample_tokens(self, grammar: Any) -> Any:
        assert self.river.table is None, "what is sampled or drafted is no part of the step"
        return SimpleNamespace(grammar=grammar)

    def propose_draft_token_ids(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        assert torch.is_inference_mode_enabled()
        return [[*args, *kwargs.values()]]

    def take_draft_token_ids(self) -> Any:
        return self._draft_token_ids


class Mode:
    """Two requests: one of a prompt's rows, one whose tokens may leave."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.rows_taken: list[int] = []

    def table(self) -> StepTable:
        return StepTable(L, [4, 1, 1], [1.0, 0.5, 0.5], [L, 1, 1], request=[0, 1, 1])

    def depths(self, table: StepTable) -> list[int]:
        return [-L, 6]

    def observe(self, table: StepTable, seconds: float) -> None:
        assert 0 < seconds < 60
        self.rows_taken.append(table.num_rows)

    def forget(self, request_ids: Any) -> None:
        self.forgotten += request_ids


class FakeRiver:
    """Runs the whole step, or the part of it that may leave."""

    def __init__(self) -> None:
        self.in_parts = False
        self.table: StepTable | None = None

    def run(self, table: StepTable, forward: Any) -> Any:
        self.table = table
        return forward(table.part()) if self.in_parts else forward()

    def rest(self) -> None:
        self.table = None


class Runner(RiverRunnerMixin, FakeRunner):
    pass


@pytest.fixture
def runner() -> Runner:
    return Runner()


def test_a_step_is_run_by_the_river_and_its_depths_are_on_the_output(runner: Runner) -> None:
    scheduled = SimpleNamespace(finished_req_ids={"gone"})
    assert runner.execute_model(scheduled, "step") == "step"
    assert runner.river_steps.forgotten == ["gone"]
    assert runner.river_steps.rows_taken == [ROWS]
    given = runner._model_forward("ids", positions="p", extra=1)
    assert (given["input_ids"], given["positions"], given["extra"]) == ("ids", "p", 1)
    sampled = runner.sample_tokens("grammar")
    assert sampled.grammar == "grammar"
    assert depths_of(sampled) == {"b": -L, "a": 6}


@pytest.mark.parametrize(
    ("grammar", "asynchronous", "learnt"),
    [(None, False, [ROWS]), (None, True, []), ("mask", False, [])],
)
def test_an_accelerators_step_ends_where_its_tokens_are_on_the_host(
    runner: Runner, grammar: Any, asynchronous: bool, learnt: list[int]
) -> None:
    runner.device, runner.use_async_scheduling = torch.device("meta"), asynchronous
    runner.execute_model(SimpleNamespace(finished_req_ids=set()), "step")
    assert runner.river_steps.rows_taken == [], "it has only been launched"
    runner.sample_tokens(grammar)
    assert runner.river_steps.rows_taken == learnt


def test_a_step_without_depths_hands_none_over(runner: Runner) -> None:
    """As in verified mode."""
    for depths in ([-L, 6], []):
        runner.river_steps.depths = lambda table, depths=depths: depths
        runner.execute_model(SimpleNamespace(finished_req_ids=set()))
        runner._model_forward("ids")
        sampled = runner.sample_tokens(None)
    assert depths_of(sampled) == {}


@pytest.mark.parametrize("plain", [True, False])
def test_a_part_runs_on_its_own_rows(
    runner: Runner, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions of some models have three dimensions; embeddings may be given in place of ids."""
    described: list[Any] = []

    def context(config: Any, parts: Any) -> Any:
        described.append((config, parts))
        return nullcontext()

    monkeypatch.setattr(module, "own_forward_context", context)
    monkeypatch.setattr(module, "part_metadata", lambda _, part: part.origin_rows.tolist())
    runner.river.in_parts = True
    rows = torch.arange(ROWS)
    if plain:
        given = runner._model_forward(rows, rows + 10, extra=1)
        assert (given["input_ids"].tolist(), given["inputs_embeds"]) == ([4, 5], None)
        assert given["positions"].tolist() == [14, 15]
        assert given["extra"] == 1
    else:
        given = runner._model_forward(None, rows.expand(3, -1), None, rows.expand(2, -1).t())
        assert (given["input_ids"], given["inputs_embeds"].tolist()) == (None, [[4, 4], [5, 5]])
        assert given["positions"].tolist() == [[4, 5]] * 3
    assert described == [("config", [4, 5])]


@dataclass
class Sampling:
    logprob_token_ids: dict[int, list[int]]
    spec_token_ids: list[list[int]]
    thinking_budget_state_holder: Any = None


@pytest.mark.parametrize("drafted", [[0, 0], [2, 1]])
@pytest.mark.parametrize("named", [{}, {1: [5, 6]}])
def test_what_the_rejection_sampler_cannot_do_is_the_samplers(
    runner: Any, drafted: list[int], named: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step without drafts, and one with log-probabilities of named tokens, which drafts lose."""
    withdrawn: list[bool] = []
    monkeypatch.setattr(FakeRunner, "_sample", lambda self, *given: given, raising=False)
    runner.sampler = lambda **given: given
    runner.drafter = SimpleNamespace(withdraw=lambda: withdrawn.append(True))
    sampling = Sampling(named, [[9] * drafts for drafts in drafted])
    runner.input_batch.sampling_metadata = sampling
    rows = [1 + drafts for drafts in drafted]
    logits = torch.arange(sum(rows)).unsqueeze(1)
    drafts = SimpleNamespace(
        num_draft_tokens=drafted, cu_num_sampled_tokens=torch.tensor(rows).cumsum(0)
    )
    found = runner._sample(logits, drafts)
    if any(drafted) and not named:
        assert found == (logits, drafts)
    else:
        assert found["predict_bonus_token"], "one row a request, whatever it drafted"
        assert found["logits"].flatten().tolist() == [0, rows[0]]
        assert found["sampling_metadata"] == Sampling(named, [[], []])
    assert withdrawn == [True] * (any(drafted) and bool(named))
    assert runner._sample(logits, None) == (logits, None)


def test_drafts_are_made_when_the_engine_takes_them_and_only_once(runner: Any) -> None:
    """By then it has sent the step's tokens."""
    runner._draft_token_ids = runner.propose_draft_token_ids("step", sampled="tokens")
    assert runner._draft_token_ids == []
    assert runner.take_draft_token_ids() == [["step", "tokens"]]
    runner._draft_token_ids = None
    assert runner.take_draft_token_ids() is None


@pytest.mark.parametrize("beside", [0, 2], ids=["alone", "beside drafts"])
def test_a_second_thought_ends_in_time(
    runner: Any, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own state of a thinking budget, in an engine that drafts, for a request without
    drafts: the end is forced once N tokens were thought, each time."""
    start, end, budget = 1, 2, 2
    config: Any = SimpleNamespace(reasoning_start_token_ids=[start], reasoning_end_token_ids=[end])
    holder = ThinkingBudgetStateHolder(config, 2, 4, torch.device("cpu"), False)
    said: list[int] = []
    params = SamplingParams(thinking_token_budget=budget)
    update = BatchUpdate(batch_size=1, removed=[], moved=[], added=[(0, params, [], said)])
    holder.sync_batch(update)
    drafts = [[], [9] * beside]

    def sampler(logits: torch.Tensor, sampling_metadata: Any, predict_bonus_token: bool) -> Any:
        holder.update_state([said, []], drafts, repeat_indices=None)
        return holder.apply_to_logits(logits, predict_bonus_token, drafts)

    def rejection_sampler(self: Any, logits: torch.Tensor, metadata: Any) -> torch.Tensor:
        """The order of ``vllm/v1/sample/rejection_sampler.py``: last rows, then drafted ones."""
        last = sampler(logits[metadata.cu_num_sampled_tokens - 1], None, predict_bonus_token=True)
        drafted = holder.apply_to_logits(logits[-1 - beside : -1].clone(), False, drafts)
        assert not drafted.any(), "the end of one request is not another's"
        return last

    runner.sampler = sampler
    monkeypatch.setattr(FakeRunner, "_sample", rejection_sampler, raising=False)
    runner.input_batch.sampling_metadata = Sampling({}, drafts, holder)
    metadata = SimpleNamespace(
        num_draft_tokens=[0, beside], cu_num_sampled_tokens=torch.tensor([1, 2 + beside])
    )
    forced = []
    for token in (start, 7, 7, end, start, 7, 7, end):
        logits = runner._sample(torch.zeros(2 + beside, 10), metadata)
        forced.append(int(logits[0].argmax()) == end)
        said.append(token)
    assert forced == [False, False, False, True, False, False, False, True]
