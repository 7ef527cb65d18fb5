"""The river is the river: depths as asked for, logits of a plain PyTorch reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.engines import Generated, generate, greedy
from tests.support.prompts import PROMPTS
from tests.support.reference import ReferenceModel

pytestmark = pytest.mark.engine

EVERYTHING = {"threshold": -1.0, "min_layers": 1}


@pytest.mark.parametrize("name", ["smollm2", "qwen2"])
def test_minus_one_exits_after_the_first_layer(name: str, request: pytest.FixtureRequest) -> None:
    river = request.getfixturevalue(f"river_{name}")
    for answer in generate(river, PROMPTS[:8], greedy(32, EVERYTHING)):
        assert answer.exit_layers[1:] == [1] * 31
        assert answer.decode_tokens == 31


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


def test_min_layers_is_a_floor(river_smollm2: Any) -> None:
    settings = {"threshold": 0.5, "min_layers": 7}
    for answer in generate(river_smollm2, PROMPTS[:4], greedy(16, settings)):
        assert min(answer.exit_layers[1:]) >= 7


def test_requests_keep_their_own_settings_in_one_batch(river_smollm2: Any) -> None:
    settings = [{"min_layers": layers, "threshold": -1.0} for layers in (1, 3, 10, 29)]
    answers = generate(river_smollm2, PROMPTS[:4], [greedy(16, s) for s in settings])
    for answer, setting in zip(answers, settings, strict=True):
        assert set(answer.exit_layers[1:]) == {setting["min_layers"]}


@pytest.mark.parametrize("exit_layer", [1, 3, 5])
def test_logits_equal_the_reference_qwen2(
    tiny_qwen2: Path, river_qwen2: Any, exit_layer: int
) -> None:
    _compare(ReferenceModel(tiny_qwen2), river_qwen2, exit_layer, tokens=48)


@pytest.mark.parametrize("exit_layer", [2, 12])
def test_logits_equal_the_reference_smollm2(
    smollm2: Path, river_smollm2: Any, exit_layer: int
) -> None:
    _compare(ReferenceModel(smollm2), river_smollm2, exit_layer, tokens=40)


def test_reference_tells_depths_apart(tiny_qwen2: Path, river_qwen2: Any) -> None:
    """The tolerance below is not so wide that a wrong exit layer would pass."""
    reference = ReferenceModel(tiny_qwen2)
    answer, prompt = _forced(river_qwen2, 1, 24)
    right = _error(reference, answer, prompt, 1)
    wrong = min(_error(reference, answer, prompt, layer) for layer in (2, 4, 6))
    assert wrong > 2 * right


def _compare(reference: ReferenceModel, engine: Any, exit_layer: int, tokens: int) -> None:
    """Over the whole generated sequence, so that a wrong slot or a stale block cannot hide.

    The engine computes in bfloat16 and the reference in float32. How much that alone makes is
    seen on the backbone, of which the engine's own is vLLM's: an exit may be twice as far off
    (its 4-bit products round their scales too), and never more than 10 % of the logits' spread.
    """
    answer, prompt = _forced(engine, exit_layer, tokens)
    assert set(answer.exit_layers[1:]) == {exit_layer}
    backbone, _ = _forced(engine, reference.num_layers, tokens)
    rounding = _error(reference, backbone, prompt, reference.num_layers)
    assert _error(reference, answer, prompt, exit_layer) < min(2 * rounding, 0.1)


def _forced(engine: Any, exit_layer: int, tokens: int) -> tuple[Generated, list[int]]:
    prompt = engine.get_tokenizer().encode(PROMPTS[2])
    settings = {"threshold": -1.0, "min_layers": exit_layer}
    params = greedy(tokens, settings, logprobs=64)
    (answer,) = generate(engine, [{"prompt_token_ids": prompt}], params)
    return answer, prompt


def _error(
    reference: ReferenceModel, answer: Generated, prompt: list[int], exit_layer: int
) -> float:
    """Largest, over the steps, RMS difference of the reported logits, relative to their spread."""
    sequence = prompt + answer.tokens[:-1]
    depths = [reference.num_layers] * len(prompt) + [exit_layer] * (len(answer.tokens) - 1)
    logits = reference.run(sequence, depths)[len(prompt) - 1 :]
    worst = 0.0
    for expected, reported in zip(logits, answer.logprobs, strict=True):
        ids = torch.tensor(list(reported))
        difference = torch.tensor(list(reported.values())) - expected[ids]
        worst = max(worst, float(difference.square().mean().sqrt() / expected.std()))
    return worst
