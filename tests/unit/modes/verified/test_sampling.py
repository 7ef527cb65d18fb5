"""Drafted tokens: greedy where the request is, sampled from what rejection sampling is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.modes.verified.sampling import pick


def metadata(temperature: list[float] | None, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "all_greedy": temperature is None,
        "temperature": None if temperature is None else torch.tensor(temperature),
        "top_k": None,
        "top_p": None,
        "generators": {},
    }
    return SimpleNamespace(**(values | changes))


LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 0.0, 0.0, 0.0]])
ROWS = torch.tensor([2, 0])


def test_greedy() -> None:
    picked = pick(LOGITS.clone(), ROWS, metadata(None))
    assert picked.tokens.tolist() == [1, 0]
    assert torch.allclose(picked.confidence, LOGITS.softmax(-1).amax(-1))
    assert picked.probabilities is None


def test_each_row_takes_its_own_requests_settings() -> None:
    """Row 0 of the logits is the batch's row 2."""
    settings = metadata([0.0, 1.0, 0.5], top_k=torch.tensor([4, 4, 2]))
    picked = pick(LOGITS.clone(), ROWS, settings)
    assert picked.tokens[1] == 0
    assert picked.probabilities is not None
    expected = torch.tensor([4.0, 2.0]).softmax(-1)
    assert torch.allclose(picked.probabilities[0, [1, 2]], expected)
    assert picked.probabilities[0, [0, 3]].sum() == 0


def test_no_top_k_is_none_over_a_part_of_the_vocabulary_too() -> None:
    """vLLM says it by the size of the whole."""
    whole = metadata([1.0] * 3, top_k=torch.tensor([9, 9, 2]))
    picked = pick(LOGITS.clone(), ROWS, whole)
    assert picked.probabilities is not None
    assert torch.allclose(picked.probabilities[1], LOGITS[1].softmax(-1))
    assert (picked.probabilities[0] > 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("temperature", [1e-6, 1.0])
def test_confidence_is_the_rivers_own_whatever_the_temperature(temperature: float) -> None:
    picked = pick(LOGITS.clone(), ROWS, metadata([temperature] * 3))
    assert torch.allclose(picked.confidence, LOGITS.softmax(-1).amax(-1))
