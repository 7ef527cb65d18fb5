"""Exact means exact: with the river off, the answers are stock vLLM's own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import generate, generate_alone, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine

OFF = [{"threshold": 1.0}, {"enabled": False}]
EXITING = {"threshold": -1.0, "min_layers": 1}


@pytest.fixture(params=["smollm2", "qwen2", "int8"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Stock vLLM and River on the same checkpoint with the same settings."""
    stock, river = (request.getfixturevalue(f"{k}_{request.param}") for k in ("stock", "river"))
    return stock, river


def test_alone(pair: tuple[Any, Any]) -> None:
    """Each request in a batch of its own."""
    stock, river = pair
    prompts = PROMPTS[:6]
    expected = generate_alone(stock, prompts, greedy())
    for index, prompt in enumerate(prompts):
        (found,) = generate(river, [prompt], greedy(river=OFF[index % 2]))
        assert found.tokens == expected[index].tokens, prompt
        assert set(found.exit_layers) == {_layers(river)}


def test_in_a_batch_with_requests_that_exit(pair: tuple[Any, Any]) -> None:
    """Batches of 8 in which every second request leaves after its first layer.

    The reference is stock vLLM in a batch of the same shape: a batch shape alone can change
    stock's own rounding.
    """
    stock, river = pair
    for start in range(0, 16, 8):
        prompts = PROMPTS[start : start + 8]
        expected = generate(stock, prompts, greedy())
        settings = [greedy(river=EXITING if i % 2 else OFF[i // 2 % 2]) for i in range(8)]
        found = generate(river, prompts, settings)
        for index in range(0, 8, 2):
            assert found[index].tokens == expected[index].tokens, prompts[index]
        for index in range(1, 8, 2):
            assert set(found[index].exit_layers[1:]) == {1}


def test_sampling_with_a_seed(pair: tuple[Any, Any]) -> None:
    """Sampled tokens are stock's too: the distribution has not moved at all."""
    stock, river = pair
    params = greedy(32)
    params.temperature, params.seed = 1.0, 7
    expected = generate_alone(stock, PROMPTS[:4], params)
    with_river = greedy(32, OFF[1])
    with_river.temperature, with_river.seed = 1.0, 7
    found = generate_alone(river, PROMPTS[:4], with_river)
    assert [g.tokens for g in found] == [g.tokens for g in expected]


def _layers(engine: Any) -> int:
    return int(engine.collective_rpc("river_info")[0]["num_layers"])
