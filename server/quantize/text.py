"""The text of ``river-vllm quantize``: prompts, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from server.cli.prompts import Prompts, from_files, self_made
from server.quantize.options import QuantizeOptions, TextOptions

TEXT_TOKENS = 128
"""Approximate length of a prompt that the model writes, with its answer."""


def find_prompts(options: QuantizeOptions, llm: Any) -> Prompts:
    """The prompts of the files, or enough prompts that the model writes."""
    text = options.text
    longest = options.engine.max_model_len - text.answer_tokens - 1
    if text.prompts:
        tokenizer = llm.get_tokenizer()
        return from_files(text.prompts, tokenizer, longest, text.seed, text.half, text.answers)
    count = max(1, text.tokens // TEXT_TOKENS)
    # Odd seeds: 'calibrate' uses the even ones.
    return self_made(llm, count, longest, 2 * text.seed + 1)


def answered(options: TextOptions, engine: Any, prompts: Prompts) -> list[list[int]]:
    """As many prompts as ``--tokens`` takes, or all, each followed by its answer."""
    most, given = options.answer_tokens, prompts.answers
    if given is None:
        # There are no answers yet; most of them will reach the limit.
        lengths = [most] * len(prompts.tokens)
    else:
        lengths = [min(len(answer), most) for answer in given]
    whole = [len(prompt) + own for prompt, own in zip(prompts.tokens, lengths, strict=True)]
    tokens = prompts.tokens[: _reached(whole, options.tokens)]
    answers = engine.answers(tokens, most) if given is None else given[: len(tokens)]
    return [[*prompt, *answer[:most]] for prompt, answer in zip(tokens, answers, strict=True)]


def _reached(lengths: Sequence[int], wanted: int) -> int:
    """How many of the first ``lengths`` add up to ``wanted``; all if their sum is less."""
    sums = enumerate(accumulate(lengths, initial=0))
    return next((count for count, total in sums if total >= wanted), len(lengths))
