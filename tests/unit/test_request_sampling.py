"""What each sampling parameter leaves of drafts, and of the 4-bit LM head."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from river_vllm.request import (
    EVERY_LOGIT,
    UNDRAFTED,
    may_be_drafted,
    needs_every_logit,
)

NEITHER = (
    # Applied to each drafted token by the rejection sampler, or before it.
    *("temperature", "top_p", "top_k", "seed", "min_tokens"),
    # Applied to sampled tokens, or to none: by the scheduler and the front end.
    *("n", "max_tokens", "stop", "stop_token_ids", "ignore_eos", "repetition_detection"),
    *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
    *("include_stop_str_in_output", "output_kind", "stream_interval", "flat_logprobs"),
    *("skip_reading_prefix_cache", "skip_clone", "routed_experts_prompt_start"),
    *("output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids"),
    *("_bad_words_token_ids", "_watermarking_skipped", "extra_args"),
    # Of vLLM's model runner V2, which serves no river: refused, or without effect.
    *("prompt_logprob_token_ids", "prompt_logprob_start"),
    *("trace_decode_token_ids", "watermarking"),
)
"""Fields that rule out neither drafts nor the 4-bit LM head."""

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-it-works.md"


def test_every_field_of_vllms_is_decided_about() -> None:
    """Read of a new one whether the rejection sampler, the state of a thinking budget and the
    logits processors apply it to drafted tokens."""
    assert {*UNDRAFTED, *EVERY_LOGIT, *NEITHER} == set(SamplingParams.__struct_fields__)
    assert not {*UNDRAFTED, *EVERY_LOGIT} & set(NEITHER)


def test_the_documentation_has_the_same_table() -> None:
    section = PAGE.read_text().partition("## Sampling parameters\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    named = {
        name: answered.strip().startswith("without drafts")
        for names, answered in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert named == {
        name: name in UNDRAFTED
        for name in SamplingParams.__struct_fields__
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("options", "drafted"),
    [
        ({"min_p": 0.1}, False),
        ({"logit_bias": {3: 1.0}}, False),
        ({"logprob_token_ids": [3, 4]}, False),
        ({"thinking_token_budget": 0}, False),
        ({"thinking_token_budget": -1}, True),  # vLLM: no limit
        ({"min_p": 0.1, "temperature": 0.0}, True),
        ({"top_k": 40, "top_p": 0.9, "seed": 3}, True),
        ({"logprobs": 2, "bad_words": ["no"], "min_tokens": 4, "frequency_penalty": 0.5}, True),
    ],
)
def test_what_the_rejection_sampler_leaves_out_ends_drafts(
    options: dict[str, Any], drafted: bool
) -> None:
    assert may_be_drafted(SamplingParams(**options)) is drafted


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"top_k": 40, "top_p": 0.9, "min_p": 0.05, "min_tokens": 4, "stop": ["x"]}, False),
        ({"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}, False),
        ({"logprobs": 0}, True),
        ({"prompt_logprobs": 1}, True),
        ({"logit_bias": {5: 10.0}}, True),
        ({"allowed_token_ids": [1, 2]}, True),
        ({"bad_words": ["no"]}, True),
        ({"structured_outputs": StructuredOutputsParams(regex="a+")}, True),
        ({"repetition_penalty": 0.9}, True),
        ({"presence_penalty": -0.5}, True),
        ({"frequency_penalty": -0.5}, True),
    ],
)
def test_every_logit_is_needed_where_a_token_outside_the_likeliest_can_win_or_be_reported(
    options: dict[str, Any], every: bool
) -> None:
    assert needs_every_logit(SamplingParams(**options)) is every
