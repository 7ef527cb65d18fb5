"""Exact means exact: with the river off, the answers are stock vLLM's own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import generate, generate_alone, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine

OFF = [{"threshold": 1.0}, {"enabled": False}]
EXITING = {"threshold": -1.0, "min_layers": 1}
ANSWERS: dict[str, Any] = {}


@pytest.fixture(params=["smollm2", "qwen2"])
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """Stock vLLM and River on the same checkpoint with the same settings."""
    name = request.param
    return (
        name,
        request.getfixturevalue(f"stock_{name}"),
        request.getfixturevalue(f"river_{name}"),
    )


def test_alone(pair: tuple[str, Any, Any]) -> None:
    """Each request in a batch of its own."""
    name, stock, river = pair
    prompts = PROMPTS[:8]
    expected = generate_alone(stock, prompts, greedy())
    ANSWERS[name] = expected
    for index, prompt in enumerate(prompts):
        (found,) = generate(river, [prompt], greedy(river=OFF[index % 2]))
        assert found.tokens == expected[index].tokens, prompt
        assert set(found.exit_layers) == {_layers(river)}


def test_in_a_batch_with_requests_that_exit(pair: tuple[str, Any, Any]) -> None:
    """Batches of 8 in which every second request leaves after its first layer.

    The reference is stock vLLM in a batch of the same shape: a batch shape alone can change
    stock's own rounding (see the next test).
    """
    _, stock, river = pair
    for start in range(0, 16, 8):
        prompts = PROMPTS[start : start + 8]
        expected = generate(stock, prompts, greedy())
        settings = [greedy(river=EXITING if i % 2 else OFF[i // 2 % 2]) for i in range(8)]
        found = generate(river, prompts, settings)
        for index in range(0, 8, 2):
            assert found[index].tokens == expected[index].tokens, prompts[index]
        for index in range(1, 8, 2):
            assert set(found[index].exit_layers[1:]) == {1}


def test_batch_shape_is_what_differs(pair: tuple[str, Any, Any]) -> None:
    """River off, alone against in a batch: equal wherever stock's own two answers are equal."""
    name, stock, river = pair
    prompts = PROMPTS[:8]
    alone = ANSWERS.get(name) or generate_alone(stock, prompts, greedy())
    stock_batch = generate(stock, prompts, greedy())
    river_batch = generate(river, prompts, greedy(river=OFF[0]))
    assert [g.tokens for g in river_batch] == [g.tokens for g in stock_batch]
    same = [a.tokens == b.tokens for a, b in zip(alone, stock_batch, strict=True)]
    assert any(same), "a batch shape changes every answer: this comparison shows nothing"


def test_sampling_with_a_seed(pair: tuple[str, Any, Any]) -> None:
    """Sampled tokens are stock's too: the distribution has not moved at all."""
    _, stock, river = pair
    params = greedy(32)
    params.temperature, params.seed = 1.0, 7
    expected = generate_alone(stock, PROMPTS[:4], params)
    with_river = greedy(32, OFF[1])
    with_river.temperature, with_river.seed = 1.0, 7
    found = generate_alone(river, PROMPTS[:4], with_river)
    assert [g.tokens for g in found] == [g.tokens for g in expected]


def _layers(engine: Any) -> int:
    return int(engine.collective_rpc("river_info")[0]["num_layers"])
