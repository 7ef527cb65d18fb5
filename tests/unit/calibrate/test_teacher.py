"""Known texts, whose answers are treated as if they had been generated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.calibrate.observer import TEACHER_KEY, ForcedRequests, Observer
from river_vllm.config import RiverConfig
from river_vllm.request import default_settings
from tests.unit.modes.support import OFF, Batch, L, groups


def forced(**config: Any) -> Batch:
    batch = Batch(**config)
    settings = default_settings(RiverConfig(threshold=0.9, min_layers=2))
    batch.requests = ForcedRequests(batch.runner, settings)
    return batch


def forced_tokens(batch: Batch) -> Any:
    """What an observer of a worker measures of the step."""
    model = SimpleNamespace(river=SimpleNamespace(observer=None))
    runner = SimpleNamespace(get_model=lambda: model, river_exits=batch.exits)
    hf_config, additional = SimpleNamespace(), {"river": {}}
    vllm_config = SimpleNamespace(
        additional_config=additional, model_config=SimpleNamespace(hf_config=hf_config)
    )
    return Observer(SimpleNamespace(model_runner=runner, vllm_config=vllm_config))._forced_tokens()


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
    assert forced_tokens(batch) == [(1, (5, 6)), (2, (5, 7))]
    chunk.close()
    assert batch.exits.depths(chunk) == [L]
    assert groups(batch.begin(("b", 1, 4), ("a", 2, 8))) == ["1 decide"] * 3
    assert forced_tokens(batch) == [(1, (5, 8)), (2, (5, 9))]


@pytest.mark.parametrize(("river", "again"), [(OFF, False), (None, True)])
def test_what_does_not_decide_is_not_measured(river: Any, again: bool) -> None:
    batch = batch_with(river)
    if again:
        batch.step(("a", 8, 0), left=(3, 4))
    batch.begin(("a", 8, 0))
    assert forced_tokens(batch) == []


def test_an_answer_that_is_not_there_leaves_a_prompt() -> None:
    batch = forced()
    teacher = {"sequence": 0, "answer_start": 6}
    batch.ask("a", prompt=4, extra_args={TEACHER_KEY: teacher})
    assert groups(batch.begin(("a", 5, 0))) == ["4 stay", "1 decide"]
