"""Which requests look at the whole vocabulary's logits."""

from __future__ import annotations

from typing import Any


def needs_every_logit(params: Any) -> bool:
    """Whether a token outside the likeliest few can be picked or reported.

    Masks (structured output, allowed tokens) and changes that raise logits (bias, negative
    penalties) can make a token win that the 4-bit head ranks low; log-probabilities are normalised
    over the whole vocabulary. Penalties that only lower what was seen leave the pick among the
    likeliest.

    Args:
        params: vLLM's ``SamplingParams``.
    """
    if params.logprobs is not None or params.prompt_logprobs is not None:
        return True
    constrained = (
        params.structured_outputs,
        params.logit_bias,
        params.allowed_token_ids,
        params.bad_words,
        params.logprob_token_ids,
    )
    raising = (
        params.presence_penalty < 0,
        params.frequency_penalty < 0,
        params.repetition_penalty < 1,
    )
    return any(constrained) or any(raising)
