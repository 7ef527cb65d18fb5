"""Which requests need the logits of the whole vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from river_vllm.worker.sampling import needs_every_logit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"min_tokens": 4, "stop": ["x"]},
    ],
)
def test_the_likeliest_are_enough(options: dict[str, Any]) -> None:
    assert not needs_every_logit(SamplingParams(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 0},
        {"prompt_logprobs": 1},
        {"logit_bias": {5: 10.0}},
        {"allowed_token_ids": [1, 2]},
        {"bad_words": ["no"]},
        {"structured_outputs": StructuredOutputsParams(regex="a+")},
        {"repetition_penalty": 0.9},
        {"presence_penalty": -0.5},
        {"frequency_penalty": -0.5},
    ],
)
def test_a_token_outside_the_likeliest_can_win_or_be_reported(options: dict[str, Any]) -> None:
    assert needs_every_logit(SamplingParams(**options))
