"""Samples of unfinished prompts do not move a request's generator, on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from river_vllm.engine.cpu import unfinished_prompts_unseeded


def runner(discarded: list[bool], seeded: list[int]) -> Any:
    # More rows than requests, as in vLLM's buffers: what lies beyond is left from earlier steps.
    mask = np.array([*discarded, True, True])
    generators = {row: torch.Generator() for row in seeded}
    return SimpleNamespace(
        input_batch=SimpleNamespace(num_reqs=len(discarded), generators=generators),
        discard_request_mask=SimpleNamespace(np=mask),
    )


def test_only_rows_whose_sample_is_thrown_away_lose_their_generator_for_the_step() -> None:
    made = runner([True, False, True, False], seeded=[0, 1])
    generators = made.input_batch.generators
    before = dict(generators)
    with unfinished_prompts_unseeded(made):
        # The sampler's metadata holds this very dictionary.
        assert generators is made.input_batch.generators
        assert generators == {1: before[1]}
    assert generators == before


def test_they_come_back_after_an_error_too() -> None:
    made = runner([True], seeded=[0])
    with pytest.raises(ValueError), unfinished_prompts_unseeded(made):
        raise ValueError
    assert list(made.input_batch.generators) == [0]


def test_a_cpu_generator_cannot_be_rewound() -> None:
    """Once it can, vLLM's own way works and River's can go."""
    with pytest.raises(RuntimeError, match="offset"):
        torch.Generator().get_offset()
