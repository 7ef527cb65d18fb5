"""Known texts, whose answers are treated as if they had been generated."""

from __future__ import annotations

from typing import Any

import pytest

from river_vllm.calibrate.observer import TEACHER_KEY, TeacherForced
from tests.unit.modes.support import OFF, Batch, L, groups


def batch_with(river: Any = None, **config: Any) -> Batch:
    """Request ``a`` is text 5, of ten tokens; its answer starts at the seventh."""
    batch = Batch(TeacherForced, **config)
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
    assert batch.steps.forced_tokens() == [(1, (5, 6)), (2, (5, 7))]
    chunk.close()
    assert batch.steps.depths(chunk) == [L]
    assert groups(batch.begin(("b", 1, 4), ("a", 2, 8))) == ["1 decide"] * 3
    assert batch.steps.forced_tokens() == [(1, (5, 8)), (2, (5, 9))]


@pytest.mark.parametrize(("river", "again"), [(OFF, False), (None, True)])
def test_what_does_not_decide_is_not_measured(river: Any, again: bool) -> None:
    batch = batch_with(river)
    if again:
        batch.step(("a", 8, 0), left=(3, 4))
    batch.begin(("a", 8, 0))
    assert batch.steps.forced_tokens() == []


def test_an_answer_that_is_not_there_leaves_a_prompt() -> None:
    batch = Batch(TeacherForced)
    teacher = {"sequence": 0, "answer_start": 6}
    batch.ask("a", prompt=4, extra_args={TEACHER_KEY: teacher})
    assert groups(batch.begin(("a", 5, 0))) == ["4 stay", "1 decide"]
