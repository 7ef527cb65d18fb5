"""The river is the river: depths as asked for and counted, logits of a plain reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import Generated, generate, greedy
from tests.support.pool import few_blocks, free_blocks
from tests.support.prompts import PROMPTS
from tests.support.reference import Reference

pytestmark = pytest.mark.engine


def test_depths_follow_the_threshold(river_smollm2: Any) -> None:
    """A higher τ goes at least as deep on the first decode token, and deeper in all."""
    sums = []
    for threshold in (-1.0, 0.5, 0.9, 0.97, 0.995, 1.0):
        answers = generate(river_smollm2, PROMPTS[:4], greedy(24, {"threshold": threshold}))
        sums.append(
            (
                [a.exit_layers[1] for a in answers],
                sum(sum(a.exit_layers[1:]) for a in answers),
            )
        )
    first, total = zip(*sums, strict=True)
    for shallow, deep in itertools.pairwise(first):
        assert all(a <= b for a, b in zip(shallow, deep, strict=True))
    assert list(total) == sorted(total)
    assert total[0] < total[2] < total[-1]


def test_requests_of_one_batch_keep_their_lengths_and_depths(river_smollm2: Any) -> None:
    """One depth for each token, the first of which comes out of the prompt's prefill."""
    lengths = [5, 1, 2, 14, 17, 20, 23, 26]
    params = [
        greedy(n, {"threshold": -1.0, "min_layers": 1 + i} if i % 3 else {"enabled": False})
        for i, n in enumerate(lengths)
    ]
    answers = generate(river_smollm2, PROMPTS[:8], params)
    for index, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
        depth = 1 + index if index % 3 else 30
        assert answer.exit_layers == [30] + [depth] * (length - 1)
        assert answer.decode_tokens == length - 1


def test_stop_strings_cut_the_trace_too(river_smollm2: Any) -> None:
    params = greedy(64, {"threshold": 0.9}, stop=["\n"])
    answers = generate(river_smollm2, PROMPTS[3:9], params)
    assert any(len(answer.tokens) < 64 for answer in answers)
    for answer in answers:
        assert len(answer.exit_layers) == len(answer.tokens)


def test_chunked_prefill_counts_only_tokens(river_smollm2: Any) -> None:
    """A prompt longer than a step's token budget is prefilled in pieces, on the backbone."""
    prompts = [{"prompt_token_ids": list(range(*ends))} for ends in ((50, 60), (100, 300))]
    with few_blocks(river_smollm2, free_blocks(river_smollm2), token_budget=48):
        answers = generate(river_smollm2, prompts, greedy(12, {"threshold": -1.0}))
    for answer in answers:
        assert answer.exit_layers == [30] + [1] * 11


def test_logits_equal_the_reference(smollm2: Path, river_smollm2: Any) -> None:
    """Over the whole generated sequence, so that a wrong slot or a stale block cannot hide.

    The engine computes in bfloat16 and the reference in float32. How much that alone makes is
    seen on the backbone, of which the engine's own is vLLM's: an exit may be twice as far off
    (its 4-bit products round their scales too), and never more than 10 % of the logits' spread.
    """
    reference = Reference(smollm2)
    prompt = river_smollm2.get_tokenizer().encode(PROMPTS[2])

    def forced(exit_layer: int) -> Generated:
        params = greedy(40, {"threshold": -1.0, "min_layers": exit_layer}, logprobs=64)
        (answer,) = generate(river_smollm2, [{"prompt_token_ids": prompt}], params)
        return answer

    rounding = reference.error(prompt, forced(reference.num_layers), reference.num_layers)
    for exit_layer in (2, 12):
        answer = forced(exit_layer)
        assert set(answer.exit_layers[1:]) == {exit_layer}
        assert reference.error(prompt, answer, exit_layer) < min(2 * rounding, 0.1)
