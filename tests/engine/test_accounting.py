"""Every decode token is counted once, with the depth that it really ran."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import generate, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_one_depth_per_token(river_smollm2: Any, tokens: int) -> None:
    for answer in generate(river_smollm2, PROMPTS[:4], greedy(tokens, {"threshold": 0.9})):
        assert len(answer.exit_layers) == len(answer.tokens) == tokens
        assert answer.exit_layers[0] == 30, "the first token comes out of the prompt's prefill"
        assert answer.decode_tokens == tokens - 1


def test_stop_strings_cut_the_trace_too(river_smollm2: Any) -> None:
    params = greedy(64, {"threshold": 0.9}, stop=["\n"])
    answers = generate(river_smollm2, PROMPTS[3:9], params)
    assert any(len(answer.tokens) < 64 for answer in answers)
    for answer in answers:
        assert len(answer.exit_layers) == len(answer.tokens)


def test_chunked_prefill_counts_only_tokens(river_smollm2: Any) -> None:
    """A prompt longer than a step's token budget is prefilled in pieces, on the backbone."""
    engine = river_smollm2
    core = engine.llm_engine.engine_core.engine_core
    scheduler = core.scheduler
    budget, scheduler.max_num_scheduled_tokens = scheduler.max_num_scheduled_tokens, 48
    try:
        prompt = {"prompt_token_ids": list(range(100, 300))}
        short = {"prompt_token_ids": list(range(50, 60))}
        answers = generate(engine, [short, prompt], greedy(12, {"threshold": -1.0}))
    finally:
        scheduler.max_num_scheduled_tokens = budget
    for answer in answers:
        assert answer.exit_layers == [30] + [1] * 11


def test_requests_of_different_lengths_and_depths(river_smollm2: Any) -> None:
    params = [
        greedy(5 + 3 * i, {"threshold": -1.0, "min_layers": 1 + i} if i % 3 else {"enabled": False})
        for i in range(8)
    ]
    answers = generate(river_smollm2, PROMPTS[:8], params)
    for index, answer in enumerate(answers):
        depth = 1 + index if index % 3 else 30
        assert answer.exit_layers == [30] + [depth] * (4 + 3 * index)
