"""The 4-bit LM head with exact logits for its best candidates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm import RiverConfig
from tests.support import engines
from tests.support.engines import generate, greedy
from tests.support.prompts import PROMPTS
from tests.support.rounding import same_up_to_a_near_tie

pytestmark = pytest.mark.engine

EXIT = {"threshold": -1.0, "min_layers": 2}


@pytest.fixture(scope="session")
def with_river_head(smollm2: Path) -> Any:
    return engines.river_engine(
        smollm2, RiverConfig(lm_head="river", scope="token", max_rows="all")
    )


def test_greedy_tokens_are_those_of_the_exact_head(
    river_smollm2: Any, with_river_head: Any
) -> None:
    """The same exits with either head: the pick is made among exact logits.

    They come from another product than the head's own, which on some CPUs rounds otherwise: an
    answer may part where the two best logits are a bfloat16 step or two of each other (2^-3
    between 16 and 32).
    """
    expected = generate(river_smollm2, PROMPTS[:8], greedy(48, EXIT, logprobs=2))
    found = generate(with_river_head, PROMPTS[:8], greedy(48, EXIT))
    pairs = zip(found, expected, strict=True)
    same = [same_up_to_a_near_tie(ours.tokens, theirs, near=0.25) for ours, theirs in pairs]
    assert same.count(48) >= 2


def test_exact_requests_and_logprobs_take_the_exact_head(
    stock_smollm2: Any, with_river_head: Any
) -> None:
    expected = generate(stock_smollm2, PROMPTS[:4], greedy(24))
    found = generate(with_river_head, PROMPTS[:4], greedy(24, {"enabled": False}))
    assert [g.tokens for g in found] == [g.tokens for g in expected]
    (answer,) = generate(with_river_head, PROMPTS[:1], greedy(8, EXIT, logprobs=20))
    for step in answer.logprobs:
        assert sum(2.718281828**value for value in step.values()) <= 1.0 + 1e-3


def test_it_is_used(with_river_head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for every decode step, and not for the prompt."""
    (info,) = with_river_head.collective_rpc("river_info")
    assert info["lm_head"] == "river"
    calls: list[Any] = []

    def count(model: Any) -> None:
        method = model.lm_head.quant_method
        packed = method._packed

        def apply(x: Any, bias: Any) -> Any:
            calls.append(x)
            return packed.apply(x, bias)

        monkeypatch.setattr(method, "_packed", SimpleNamespace(apply=apply))

    with_river_head.apply_model(count)
    generate(with_river_head, PROMPTS[:1], greedy(6, EXIT))
    assert len(calls) == 5
