"""The sampling parameters of vLLM that rule out drafts or the 4-bit LM head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_Values = Callable[[Any], bool]


def _given(value: Any) -> bool:
    """Zero is a value."""
    return value is not None


def _negative(value: float) -> bool:
    return value < 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of vLLM's ``SamplingParams``.

    Attributes:
        undrafted: values with which a request has no drafts: vLLM's rejection sampler
            (``v1/sample/rejection_sampler.py``) leaves them out for drafted tokens, or errs.
        every_logit: values with which a token outside the likeliest few can be picked or reported.
            Masks and raised logits can make a token win that the 4-bit head ranks low;
            log-probabilities are normalised over the whole vocabulary. Penalties that only lower
            logits of seen tokens leave the pick among the likeliest.
    """

    undrafted: _Values | None = None
    every_logit: _Values | None = None


PARAMETERS: dict[str, Parameter] = {
    "min_p": Parameter(undrafted=bool),
    "logit_bias": Parameter(undrafted=bool, every_logit=bool),
    "logprob_token_ids": Parameter(undrafted=bool, every_logit=bool),
    "thinking_token_budget": Parameter(undrafted=_given),
    # Applied to each drafted token by the rejection sampler, or before it.
    **dict.fromkeys(("temperature", "top_p", "top_k", "seed", "min_tokens"), Parameter()),
    "presence_penalty": Parameter(every_logit=_negative),
    "frequency_penalty": Parameter(every_logit=_negative),
    "repetition_penalty": Parameter(every_logit=lambda penalty: penalty < 1),
    "bad_words": Parameter(every_logit=bool),
    "allowed_token_ids": Parameter(every_logit=bool),
    "structured_outputs": Parameter(every_logit=bool),
    "logprobs": Parameter(every_logit=_given),
    "prompt_logprobs": Parameter(every_logit=_given),
    # Applied to sampled tokens, or to none: by the scheduler and the front end.
    **dict.fromkeys(
        (
            *("n", "max_tokens", "stop", "stop_token_ids", "ignore_eos", "repetition_detection"),
            *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
            *("include_stop_str_in_output", "output_kind", "stream_interval", "flat_logprobs"),
            *("skip_reading_prefix_cache", "skip_clone", "routed_experts_prompt_start"),
            *("output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids"),
            *("_bad_words_token_ids", "_watermarking_skipped", "extra_args"),
        ),
        Parameter(),
    ),
    # Of vLLM's model runner V2, which serves no river: refused, or without effect.
    **dict.fromkeys(
        (
            *("prompt_logprob_token_ids", "prompt_logprob_start"),
            *("trace_decode_token_ids", "watermarking"),
        ),
        Parameter(),
    ),
}
"""All fields, by name."""

_UNDRAFTED = {name: p.undrafted for name, p in PARAMETERS.items() if p.undrafted}
_EVERY_LOGIT = {name: p.every_logit for name, p in PARAMETERS.items() if p.every_logit}


def may_be_drafted(params: Any) -> bool:
    """Whether a request with these ``SamplingParams`` may have drafts."""
    return not any(among(getattr(params, name)) for name, among in _UNDRAFTED.items())


def needs_every_logit(params: Any) -> bool:
    """Whether a request with these ``SamplingParams`` may pick or report an unlikely token."""
    return any(among(getattr(params, name)) for name, among in _EVERY_LOGIT.items())
