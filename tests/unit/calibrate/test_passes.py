"""What a pass over known texts asks of its engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from river_vllm.calibrate.choose import Policy
from river_vllm.calibrate.observer import TEACHER_KEY
from river_vllm.calibrate.passes import TeacherForcedEngine, Text


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
    assert settings == [Policy.backbone().threshold] * 2 + [0.5] * 2
