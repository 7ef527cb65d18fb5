"""Known texts, whose answers are treated as if they had been generated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.calibrate.passes import (
    NO_EXIT,
    TEACHER_KEY,
    ForcedRequests,
    Observer,
    Policy,
    TeacherForcedEngine,
    Text,
)
from river_vllm.config import RiverConfig
from river_vllm.request import default_settings
from river_vllm.step.table import Pass, StepTable
from tests.unit.modes.support import Batch, L, groups
from tests.unit.support import config_with


def forced(**config: Any) -> Batch:
    batch = Batch(**config)
    settings = default_settings(RiverConfig(threshold=0.9, min_layers=2))
    batch.requests = ForcedRequests(batch.runner, settings)
    return batch


def measured(batch: Batch, table: StepTable) -> list[tuple[list[int], int]]:
    """Text, position and layers of each token that an observer measures in a step.

    The groups of the step ran 0, 1, 2 … layers.
    """
    model = SimpleNamespace(
        river=SimpleNamespace(observer=None), compute_logits=lambda hidden: hidden
    )
    runner = SimpleNamespace(get_model=lambda: model, river_exits=batch.exits)
    observer = Observer(SimpleNamespace(model_runner=runner, vllm_config=config_with({})))
    observer.begin(reference=True)
    observer.similarity(1, torch.zeros(1))
    table.exit_layer[:] = range(len(table.rows))
    observer.ran(Pass(table, (), {}), torch.zeros(table.num_rows, 3))
    found = observer.finish()
    return list(zip(found.tokens.tolist(), found.exit_layer.tolist(), strict=True))


def batch_with(river: Any = None, **config: Any) -> Batch:
    """Request ``a`` is text 5, of ten tokens; its answer starts at the seventh."""
    batch = forced(**config)
    teacher = {"sequence": 5, "answer_start": 6}
    batch.ask("a", river, prompt=10, extra_args={TEACHER_KEY: teacher})
    return batch


@pytest.mark.parametrize(("prefill", "prompt"), [("backbone", "stay"), ("sequence", "decide")])
def test_each_token_of_an_answer_decides_for_itself_in_every_chunk(
    prefill: str, prompt: str
) -> None:
    batch = batch_with(prefill=prefill)
    chunk = batch.begin(("a", 8, 0))
    assert groups(chunk) == [f"6 {prompt}", "1 decide", "1 decide"]
    assert measured(batch, chunk) == [([5, 6], 1), ([5, 7], 2)]
    chunk.exit_layer[:] = L
    assert batch.exits.depths(chunk) == [L]
    chunk = batch.begin(("b", 1, 4), ("a", 2, 8))
    assert groups(chunk) == ["1 decide"] * 3
    assert measured(batch, chunk) == [([5, 8], 1), ([5, 9], 2)]


def test_an_answer_that_is_not_there_leaves_a_prompt() -> None:
    batch = forced()
    teacher = {"sequence": 0, "answer_start": 6}
    batch.ask("a", prompt=4, extra_args={TEACHER_KEY: teacher})
    assert groups(batch.begin(("a", 5, 0))) == ["4 stay", "1 decide"]


class Llm:
    """vLLM's ``LLM``; keeps what it is given."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.params: list[Any] = []

    def collective_rpc(self, method: Any) -> list[Any]:
        return [SimpleNamespace(begin=lambda reference: None, finish=lambda: "measured")]

    def generate(self, inputs: Any, params: Any, use_tqdm: bool) -> None:
        self.inputs += inputs
        self.params += params


def test_every_row_of_every_pass_is_computed() -> None:
    """No block of an earlier pass is found again, whatever the policy: K and V are compared."""
    llm = Llm()
    engine = TeacherForcedEngine(llm)
    text = Text((1, 2), (3, 4, 5))
    for policy in (None, Policy(0.5, 2)):
        assert engine.run(policy, [text, text], first=7) == "measured"
    assert [given["prompt_token_ids"] for given in llm.inputs] == [[1, 2, 3, 4]] * 4
    assert len({given["cache_salt"] for given in llm.inputs}) == 4
    known = [params.extra_args[TEACHER_KEY] for params in llm.params]
    assert known == [{"sequence": number, "answer_start": 2} for number in (7, 8)] * 2
    settings = [params.extra_args["river"]["threshold"] for params in llm.params]
    assert settings == [NO_EXIT] * 2 + [0.5] * 2
